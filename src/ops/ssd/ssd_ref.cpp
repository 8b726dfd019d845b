// The definition of ssd: the recurrence and its gradient in plain loops, f32 and f64, one head after the other, one
// token after the other. Equations: README.md.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/ssd/ssd.h"

namespace ssm::ref {
namespace {

// What one head reads. Works on the arguments of both passes.
template <class T>
struct Head {
  Matrix<T> x, dt, B, C;
  const T *D, *dt_bias;
  SsdSizes sizes;
  int64_t head;
  bool D_of_channels;  // D (m p), else (m)
  T A, dt_min, dt_max;

  template <class Args>
  Head(const Args& args, int64_t h)
      : x(args.x.template matrix<T>()),
        dt(args.dt.template matrix<T>()),
        B(args.B.template matrix<T>()),
        C(args.C.template matrix<T>()),
        D(args.D.template data<T>()),
        dt_bias(args.dt_bias.template data<T>()),
        sizes(args.sizes),
        head(h),
        D_of_channels(args.D && args.D.count() != args.sizes.m),
        A(-std::exp(args.A_log.template data<T>()[h])),
        dt_min(static_cast<T>(args.dt_min)),
        dt_max(static_cast<T>(args.dt_max)) {}

  T raw(int64_t t) const { return dt[t][head] + (dt_bias ? dt_bias[head] : T(0)); }
  T unlimited(int64_t t) const {
    const T v = raw(t);
    return v > 20 ? v : std::log1p(std::exp(v));
  }
  T delta(int64_t t) const {  // (1)
    const T step = unlimited(t);
    return step < dt_min ? dt_min : step > dt_max ? dt_max : step;
  }
  T ddelta_ddt(int64_t t) const {
    const T v = raw(t), step = unlimited(t);
    if (step < dt_min || step > dt_max) return 0;
    return v > 20 ? T(1) : 1 / (1 + std::exp(-v));
  }
  int64_t channel(int64_t c) const { return head * sizes.p + c; }                 // of x and y
  int64_t column(int64_t k) const { return sizes.group_of(head) * sizes.n + k; }  // of B and C
  int64_t D_index(int64_t c) const { return D_of_channels ? channel(c) : head; }
  T D_at(int64_t c) const { return D ? D[D_index(c)] : T(0); }
  T* state_in(const Tensor& states, int64_t row) const {  // n x p
    return states.data<T>() + (row * sizes.m + head) * sizes.n * sizes.p;
  }

  void advance(int64_t t, T* S) const {  // (2)
    const T step = delta(t), a = std::exp(step * A);
    for (int64_t k = 0; k < sizes.n; ++k)
      for (int64_t c = 0; c < sizes.p; ++c)
        S[k * sizes.p + c] = a * S[k * sizes.p + c] + step * B[t][column(k)] * x[t][channel(c)];
  }
};

template <class T>
void forward(const SsdForward& args) {
  const SsdSizes& sizes = args.sizes;
  const auto y = args.y.matrix<T>();
  const Seqs& seqs = *args.seqs;
  const std::vector<int64_t> first_span = ssd_first_spans(seqs);
  std::vector<T> S(static_cast<size_t>(sizes.n * sizes.p));  // (n, p)
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const auto at = static_cast<size_t>(s);
    for (int64_t h = 0; h < sizes.m; ++h) {
      const Head<T> head(args, h);
      std::fill(S.begin(), S.end(), T(0));
      if (args.state) std::copy_n(head.state_in(args.state, seqs.slots[at]), S.size(), S.data());
      for (int64_t i = 0; i < seqs.length(s); ++i) {
        const int64_t t = seqs.offsets[at] + i;
        if (args.starts && i % kSsdSpan == 0)
          std::copy(S.begin(), S.end(), head.state_in(args.starts, first_span[at] + i / kSsdSpan));
        head.advance(t, S.data());
        for (int64_t c = 0; c < sizes.p; ++c) {  // (3)
          T sum = head.D_at(c) * head.x[t][head.channel(c)];
          for (int64_t k = 0; k < sizes.n; ++k)
            sum += head.C[t][head.column(k)] * S[static_cast<size_t>(k * sizes.p + c)];
          y[t][head.channel(c)] = sum;
        }
      }
      if (args.state) std::copy(S.begin(), S.end(), head.state_in(args.state, seqs.slots[at]));
    }
  }
}

// Tokens [begin, end) of a span backward. `before` is the state before the first; g (n, p) is a_end g_end of (9) on
// entry, and the same for the first token on return.
template <class T>
void backward_span(const SsdBackward& args, const Head<T>& head, int64_t begin, int64_t end, const T* before, T* g) {
  const auto dy = args.dy.matrix<T>(), dx = args.dx.matrix<T>(), ddt = args.ddt.matrix<T>(), dB = args.dB.matrix<T>(),
             dC = args.dC.matrix<T>();
  const int64_t n = head.sizes.n, p = head.sizes.p, h = head.head;
  const auto size = static_cast<size_t>(n * p);
  std::vector<std::vector<T>> S(1, std::vector<T>(before, before + size));  // (tokens + 1, n, p)
  for (int64_t t = begin; t < end; ++t) {
    S.push_back(S.back());
    head.advance(t, S.back().data());
  }
  std::vector<T> dinput(static_cast<size_t>(p));  // the gradient of delta x
  for (int64_t t = end - 1; t >= begin; --t) {
    const T *S_before = S[static_cast<size_t>(t - begin)].data(), *S_now = S[static_cast<size_t>(t - begin) + 1].data();
    const T step = head.delta(t), a = std::exp(step * head.A);
    std::fill(dinput.begin(), dinput.end(), T(0));
    T dlog_a = 0;
    for (int64_t k = 0; k < n; ++k) {
      const T B = head.B[t][head.column(k)], C = head.C[t][head.column(k)];
      T dB_sum = 0, dC_sum = 0;
      for (int64_t c = 0; c < p; ++c) {
        T& gradient = g[k * p + c];
        const T dout = dy[t][head.channel(c)], x = head.x[t][head.channel(c)];
        gradient += C * dout;                            // (9)
        dC_sum += dout * S_now[k * p + c];               // (10)
        dB_sum += gradient * step * x;                   // (11)
        dinput[static_cast<size_t>(c)] += B * gradient;  // (12)
        dlog_a += a * S_before[k * p + c] * gradient;    // (13)
        gradient *= a;
      }
      if (dB) dB[t][head.column(k)] += dB_sum;
      if (dC) dC[t][head.column(k)] += dC_sum;
    }
    T ddelta = dlog_a * head.A;
    for (int64_t c = 0; c < p; ++c) {
      const T x = head.x[t][head.channel(c)], dout = dy[t][head.channel(c)],
              from_state = dinput[static_cast<size_t>(c)];
      ddelta += from_state * x;
      if (dx) dx[t][head.channel(c)] = step * from_state + head.D_at(c) * dout;
      if (args.dD) args.dD.data<T>()[head.D_index(c)] += dout * x;
    }
    const T draw = ddelta * head.ddelta_ddt(t);
    if (ddt) ddt[t][h] = draw;
    if (args.ddt_bias) args.ddt_bias.data<T>()[h] += draw;
    if (args.dA_log) args.dA_log.data<T>()[h] += dlog_a * step * head.A;  // dA / dA_log = A
  }
}

template <class T>
void backward(const SsdBackward& args) {
  for (const Tensor* sum : {&args.dA_log, &args.dB, &args.dC, &args.dD, &args.ddt_bias})
    if (*sum) sum->fill_zero();
  const SsdSizes& sizes = args.sizes;
  const Seqs& seqs = *args.seqs;
  const std::vector<int64_t> first_span = ssd_first_spans(seqs);
  std::vector<T> g(static_cast<size_t>(sizes.n * sizes.p));  // (n, p)
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const auto at = static_cast<size_t>(s);
    if (seqs.length(s) == 0) continue;
    for (int64_t h = 0; h < sizes.m; ++h) {
      const Head<T> head(args, h);
      std::fill(g.begin(), g.end(), T(0));
      if (args.dstate) std::copy_n(head.state_in(args.dstate, seqs.slots[at]), g.size(), g.data());
      for (int64_t span = (seqs.length(s) - 1) / kSsdSpan; span >= 0; --span) {
        const int64_t begin = seqs.offsets[at] + span * kSsdSpan;
        const int64_t end = std::min(begin + kSsdSpan, seqs.offsets[at + 1]);
        backward_span<T>(args, head, begin, end, head.state_in(args.starts, first_span[at] + span), g.data());
      }
      if (args.dstate) std::copy(g.begin(), g.end(), head.state_in(args.dstate, seqs.slots[at]));
    }
  }
}

}  // namespace

void ssd_forward(const SsdForward& args, Threads&) {
  args.x.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void ssd_backward(const SsdBackward& args, Threads&) {
  args.x.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
