// The definition of the selective scan in plain loops, f32 and f64: one channel after the other, one token after the
// other. Equations: README.md.
#include <cmath>
#include <vector>

#include "ops/selective_scan/selective_scan.h"

namespace ssm::ref {
namespace {

template <class T>
T softplus(T v) {
  return v > 20 ? v : std::log1p(std::exp(v));
}

template <class T>
T sigmoid(T v) {
  return 1 / (1 + std::exp(-v));
}

template <class T>
T at(const Tensor& vector, int64_t i, T absent) {
  return vector ? vector.data<T>()[i] : absent;
}

template <class T>
T* state_of(const Tensor& states, int64_t row, int64_t c) {  // h[n * e] is state n of channel c
  return states.data<T>() + row * states.size(1) * states.size(2) + c;
}

template <class T>
void forward(const ScanForward& args) {
  const auto x = args.x.matrix<T>(), dt = args.dt.matrix<T>(), z = args.z.matrix<T>(), A_log = args.A_log.matrix<T>(),
             B = args.B.matrix<T>(), C = args.C.matrix<T>(), out = args.out.matrix<T>();
  const int64_t e = x.columns, states = B.columns;
  const Seqs& seqs = *args.seqs;
  int64_t chunk = 0;  // row of `starts`
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t begin = seqs.offsets[static_cast<size_t>(s)], slot = seqs.slots[static_cast<size_t>(s)];
    for (int64_t c = 0; c < e; ++c) {
      std::vector<T> h(static_cast<size_t>(states), 0);  // (n)
      for (int64_t n = 0; args.h && n < states; ++n) h[static_cast<size_t>(n)] = state_of<T>(args.h, slot, c)[n * e];
      for (int64_t i = 0; i < seqs.length(s); ++i) {
        const int64_t t = begin + i;
        if (args.starts && i % kScanChunk == 0)
          for (int64_t n = 0; n < states; ++n)
            state_of<T>(args.starts, chunk + i / kScanChunk, c)[n * e] = h[static_cast<size_t>(n)];
        const T delta = softplus(dt[t][c] + at<T>(args.dt_bias, c, 0));  // (9)
        T y = at<T>(args.D, c, 0) * x[t][c];
        for (int64_t n = 0; n < states; ++n) {
          T& state = h[static_cast<size_t>(n)];
          state = std::exp(delta * -std::exp(A_log[c][n])) * state + delta * B[t][n] * x[t][c];  // (10)
          y += C[t][n] * state;                                                                  // (11)
        }
        out[t][c] = z ? y * z[t][c] * sigmoid(z[t][c]) : y;  // (12)
      }
      for (int64_t n = 0; args.h && n < states; ++n) state_of<T>(args.h, slot, c)[n * e] = h[static_cast<size_t>(n)];
    }
    chunk += (seqs.length(s) + kScanChunk - 1) / kScanChunk;
  }
}

// The backward of one channel of one sequence; `start` and `dh` are its initial state and the gradient of its final
// one.
template <class T>
void backward_channel(const ScanBackward& args, int64_t begin, int64_t end, int64_t c, const T* start, T* dh) {
  const auto x = args.x.matrix<T>(), dt = args.dt.matrix<T>(), z = args.z.matrix<T>(), A_log = args.A_log.matrix<T>(),
             B = args.B.matrix<T>(), C = args.C.matrix<T>(), dout = args.dout.matrix<T>(), dx = args.dx.matrix<T>(),
             ddt = args.ddt.matrix<T>(), dA_log = args.dA_log.matrix<T>(), dB = args.dB.matrix<T>(),
             dC = args.dC.matrix<T>(), dz = args.dz.matrix<T>(), out = args.out.matrix<T>();
  const int64_t e = x.columns, states = B.columns;
  const T D = at<T>(args.D, c, 0), bias = at<T>(args.dt_bias, c, 0);
  // All states of this channel, h[0] the initial one. (tokens + 1, n)
  std::vector<std::vector<T>> h(1, std::vector<T>(static_cast<size_t>(states), 0));
  for (int64_t n = 0; n < states; ++n) h[0][static_cast<size_t>(n)] = start[n * e];
  for (int64_t t = begin; t < end; ++t) {
    const T delta = softplus(dt[t][c] + bias);
    h.push_back(h.back());
    for (int64_t n = 0; n < states; ++n) {
      T& state = h.back()[static_cast<size_t>(n)];
      state = std::exp(delta * -std::exp(A_log[c][n])) * state + delta * B[t][n] * x[t][c];
    }
  }
  std::vector<T> carried(static_cast<size_t>(states), 0);  // (n): a_(t+1) g_(t+1) of (13)
  for (int64_t n = 0; dh && n < states; ++n) carried[static_cast<size_t>(n)] = dh[n * e];
  for (int64_t t = end - 1; t >= begin; --t) {
    const std::vector<T>& now = h[static_cast<size_t>(t - begin + 1)];
    const std::vector<T>& before = h[static_cast<size_t>(t - begin)];
    const T raw = dt[t][c] + bias, delta = softplus(raw);
    T dy = dout[t][c];
    T y = D * x[t][c];
    for (int64_t n = 0; n < states; ++n) y += C[t][n] * now[static_cast<size_t>(n)];
    if (out) out[t][c] = z ? y * z[t][c] * sigmoid(z[t][c]) : y;
    if (z) {  // (19)
      const T gate = sigmoid(z[t][c]);
      if (dz) dz[t][c] = dy * y * gate * (1 + z[t][c] * (1 - gate));
      dy *= z[t][c] * gate;
    }
    T dinput = 0, ddelta = 0;  // dinput: the gradient of delta x, summed over n
    for (int64_t n = 0; n < states; ++n) {
      const auto i = static_cast<size_t>(n);
      const T A = -std::exp(A_log[c][n]), a = std::exp(delta * A);
      const T g = dy * C[t][n] + carried[i];            // (13)
      const T decayed = g * a * before[i];              // g times the derivative of a h by delta A
      if (dC) dC[t][n] += dy * now[i];                  // (14)
      if (dB) dB[t][n] += g * delta * x[t][c];          // (15)
      dinput += g * B[t][n];                            // (16)
      ddelta += decayed * A;                            // (17)
      if (dA_log) dA_log[c][n] += decayed * delta * A;  // (18); dA / dA_log = A
      carried[i] = g * a;
    }
    ddelta += dinput * x[t][c];
    const T draw = raw > 20 ? ddelta : ddelta * sigmoid(raw);
    if (ddt) ddt[t][c] = draw;
    if (args.ddt_bias) args.ddt_bias.data<T>()[c] += draw;
    if (args.dD) args.dD.data<T>()[c] += dy * x[t][c];
    if (dx) dx[t][c] = dinput * delta + dy * D;
  }
  for (int64_t n = 0; dh && n < states; ++n) dh[n * e] = carried[static_cast<size_t>(n)];
}

template <class T>
void backward(const ScanBackward& args) {
  for (const Tensor* sum : {&args.dA_log, &args.dB, &args.dC, &args.dD, &args.ddt_bias})
    if (*sum) sum->fill_zero();
  const Seqs& seqs = *args.seqs;
  int64_t chunk = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    if (seqs.length(s) == 0) continue;
    const auto i = static_cast<size_t>(s);
    for (int64_t c = 0; c < args.x.size(1); ++c)
      backward_channel<T>(args, seqs.offsets[i], seqs.offsets[i + 1], c, state_of<T>(args.starts, chunk, c),
                          args.dh ? state_of<T>(args.dh, seqs.slots[i], c) : nullptr);
    chunk += (seqs.length(s) + kScanChunk - 1) / kScanChunk;
  }
}

}  // namespace

void selective_scan_forward(const ScanForward& args, Threads&) {
  args.x.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void selective_scan_backward(const ScanBackward& args, Threads&) {
  args.x.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
