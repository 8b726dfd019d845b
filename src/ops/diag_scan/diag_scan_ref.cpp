// The definition of diag_scan: the recurrence and its gradient in plain loops, f32 and f64, one channel after the
// other, one token after the other. Equations: diag_scan.h and README.md.
#include <complex>
#include <vector>

#include "ops/diag_scan/diag_scan.h"

namespace ssm::ref {
namespace {

// One channel of a (parts, n, e) tensor, and of a row of a (rows, parts, n, e) one.
template <class T>
struct Modes {
  T* data;
  int64_t parts, n, e;

  Modes(const Tensor& tensor, int64_t channel, int64_t row = 0)
      : data(tensor ? tensor.data<T>() + row * tensor.size(-3) * tensor.size(-2) * tensor.size(-1) + channel : nullptr),
        parts(tensor ? tensor.size(-3) : 0),
        n(tensor ? tensor.size(-2) : 0),
        e(tensor ? tensor.size(-1) : 0) {}
  std::complex<T> operator[](int64_t k) const { return {data[k * e], parts == 2 ? data[(n + k) * e] : T(0)}; }
  void put(int64_t k, std::complex<T> value) const {
    data[k * e] = value.real();
    if (parts == 2) data[(n + k) * e] = value.imag();
  }
  void add(int64_t k, std::complex<T> value) const { put(k, (*this)[k] + value); }
};

template <class T>
using States = std::vector<std::complex<T>>;  // (n)

template <class T>
struct Channel {
  Modes<T> z, b, c, f, g;
  T D;
  Channel(const auto& args, int64_t e)
      : z(args.z, e),
        b(args.b, e),
        c(args.c, e),
        f(args.f, e),
        g(args.g, e),
        D(args.D ? args.D.template data<T>()[e] : T(0)) {}

  T kappa(const States<T>& x) const {  // (1)
    T sum = 0;
    for (int64_t k = 0; f.data && k < z.n; ++k) sum += (f[k] * x[static_cast<size_t>(k)]).real();
    return sum;
  }
  void advance(T u, States<T>& x) const {  // (2)
    const T kappa_now = kappa(x);
    for (int64_t k = 0; k < z.n; ++k) {
      auto& mode = x[static_cast<size_t>(k)];
      std::complex<T> change = z[k] * mode + b[k] * u;
      if (f.data) change -= g[k] * kappa_now;
      mode += change;
    }
  }
};

template <class T>
States<T> read(const Modes<T>& from) {
  States<T> x;
  for (int64_t k = 0; k < from.n; ++k) x.push_back(from[k]);
  return x;
}

template <class T>
void write(const States<T>& x, const Modes<T>& to) {
  for (int64_t k = 0; k < to.n; ++k) to.put(k, x[static_cast<size_t>(k)]);
}

template <class T>
void forward(const DiagScanForward& args) {
  const Seqs& seqs = *args.seqs;
  const auto u = args.u.matrix<T>(), y = args.y.matrix<T>();
  for (int64_t e = 0; e < args.z.size(2); ++e) {
    const Channel<T> channel(args, e);
    for (int64_t s = 0; s < seqs.count(); ++s) {
      const auto at = static_cast<size_t>(s);
      States<T> x(static_cast<size_t>(channel.z.n));
      if (args.state) x = read(Modes<T>(args.state, e, seqs.slots[at]));
      for (int64_t i = 0; i < seqs.length(s); ++i) {
        const int64_t t = seqs.offsets[at] + i;
        if (args.starts && i % kDiagScanSpan == 0)
          write(x, Modes<T>(args.starts, e, diag_scan_first_span(seqs, s) + i / kDiagScanSpan));
        channel.advance(u[t][e], x);
        if (!y) continue;
        T sum = channel.D * u[t][e];  // (3)
        for (int64_t k = 0; k < channel.z.n; ++k) sum += (channel.c[k] * x[static_cast<size_t>(k)]).real();
        y[t][e] = sum;
      }
      if (args.state) write(x, Modes<T>(args.state, e, seqs.slots[at]));
    }
  }
}

// Tokens [begin, end) of channel e backward from `x`, the states before begin. On entry `later` is the gradient that
// token `end` and all after it have for the states after token end - 1; on return the same for begin.
template <class T>
void backward_span(const DiagScanBackward& args, int64_t e, int64_t begin, int64_t end, const States<T>& x_begin,
                   States<T>& later) {
  const Channel<T> channel(args, e);
  const Modes<T> dz(args.dz, e), db(args.db, e), dc(args.dc, e), df(args.df, e), dg(args.dg, e);
  const auto u = args.u.matrix<T>(), dy = args.dy.matrix<T>(), du = args.du.matrix<T>();
  std::vector<States<T>> x(1, x_begin);
  for (int64_t t = begin; t < end; ++t) {
    x.push_back(x.back());
    channel.advance(u[t][e], x.back());
  }
  for (int64_t t = end - 1; t >= begin; --t) {
    const States<T>&before = x[static_cast<size_t>(t - begin)], &now = x[static_cast<size_t>(t - begin) + 1];
    const T dout = dy ? dy[t][e] : T(0), kappa = channel.kappa(before);
    T input = channel.D * dout, dkappa = 0;
    for (int64_t k = 0; k < channel.z.n; ++k) {
      auto& G = later[static_cast<size_t>(k)];
      G += std::conj(channel.c[k]) * dout;                       // (4)
      dc.add(k, std::conj(now[static_cast<size_t>(k)]) * dout);  // (6)
      db.add(k, G * u[t][e]);                                    // (6)
      dz.add(k, G * std::conj(before[static_cast<size_t>(k)]));  // (6)
      input += (std::conj(channel.b[k]) * G).real();             // (5)
      if (!channel.f.data) continue;
      dg.add(k, -G * kappa);                           // (7)
      dkappa -= (std::conj(channel.g[k]) * G).real();  // (7)
    }
    for (int64_t k = 0; k < channel.z.n; ++k) {
      auto& G = later[static_cast<size_t>(k)];
      G += std::conj(channel.z[k]) * G;  // (4)
      if (!channel.f.data) continue;
      df.add(k, std::conj(before[static_cast<size_t>(k)]) * dkappa);  // (7)
      G += std::conj(channel.f[k]) * dkappa;
    }
    if (du) du[t][e] = input;
    if (args.dD) args.dD.data<T>()[e] += dout * u[t][e];
  }
}

template <class T>
void backward(const DiagScanBackward& args) {
  const Seqs& seqs = *args.seqs;
  for (const Tensor& sum : {args.dz, args.db, args.dc, args.df, args.dg, args.dD})
    if (sum) sum.fill_zero();
  for (int64_t e = 0; e < args.z.size(2); ++e)
    for (int64_t s = 0; s < seqs.count(); ++s) {
      const auto at = static_cast<size_t>(s);
      States<T> later(static_cast<size_t>(args.z.size(1)));
      if (args.dstate) later = read(Modes<T>(args.dstate, e, seqs.slots[at]));
      for (int64_t span = (seqs.length(s) + kDiagScanSpan - 1) / kDiagScanSpan - 1; span >= 0; --span) {
        const int64_t begin = seqs.offsets[at] + span * kDiagScanSpan;
        backward_span(args, e, begin, std::min(begin + kDiagScanSpan, seqs.offsets[at + 1]),
                      read(Modes<T>(args.starts, e, diag_scan_first_span(seqs, s) + span)), later);
      }
      if (args.dstate) write(later, Modes<T>(args.dstate, e, seqs.slots[at]));
    }
}

}  // namespace

void diag_scan_forward(const DiagScanForward& args, Threads&) {
  args.u.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void diag_scan_backward(const DiagScanBackward& args, Threads&) {
  args.u.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
