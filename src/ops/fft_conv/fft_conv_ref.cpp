// The definition of fft_conv: the sums of (1) to (4), f32 and f64.
#include "ops/fft_conv/fft_conv.h"

namespace ssm::ref {
namespace {

template <class T>
void forward(const FftConvForward& args) {
  const auto u = args.u.matrix<T>(), K = args.K.matrix<T>(), y = args.y.matrix<T>();
  const T* D = args.D.data<T>();
  for (size_t s = 0; s < args.seqs->slots.size(); ++s) {
    const int64_t begin = args.seqs->offsets[s], end = args.seqs->offsets[s + 1];
    for (int64_t t = begin; t < end; ++t)
      for (int64_t e = 0; e < u.columns; ++e) {
        T sum = D ? D[e] * u[t][e] : T(0);
        for (int64_t l = 0; l <= t - begin; ++l) sum += K[l][e] * u[t - l][e];  // (1)
        y[t][e] = sum;
      }
  }
}

template <class T>
void backward(const FftConvBackward& args) {
  const auto u = args.u.matrix<T>(), K = args.K.matrix<T>(), dy = args.dy.matrix<T>(), du = args.du.matrix<T>(),
             dK = args.dK.matrix<T>();
  const T* D = args.D.data<T>();
  if (dK) args.dK.fill_zero();
  if (args.dD) args.dD.fill_zero();
  for (size_t s = 0; s < args.seqs->slots.size(); ++s) {
    const int64_t begin = args.seqs->offsets[s], end = args.seqs->offsets[s + 1];
    for (int64_t t = begin; t < end; ++t)
      for (int64_t e = 0; e < u.columns; ++e) {
        T sum = D ? D[e] * dy[t][e] : T(0);
        for (int64_t l = 0; l < end - t; ++l) {
          sum += K[l][e] * dy[t + l][e];               // (2)
          if (dK) dK[l][e] += u[t][e] * dy[t + l][e];  // (3)
        }
        if (du) du[t][e] = sum;
        if (args.dD) args.dD.data<T>()[e] += u[t][e] * dy[t][e];  // (4)
      }
  }
}

}  // namespace

void fft_conv_forward(const FftConvForward& args, Threads&) {
  args.u.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void fft_conv_backward(const FftConvBackward& args, Threads&) {
  args.u.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
