// The definition of gated_rms_norm in plain loops, f32 and f64. Equations: README.md.
#include <cmath>

#include "ops/gated_rms_norm/gated_rms_norm.h"

namespace ssm::ref {
namespace {

template <class T>
T silu(T v) {
  return v / (1 + std::exp(-v));
}

template <class T>
T silu_slope(T v) {
  const T sigmoid = 1 / (1 + std::exp(-v));
  return sigmoid * (1 + v * (1 - sigmoid));
}

template <class T>
void forward(const GatedNormForward& args) {
  const auto y = args.y.matrix<T>(), z = args.z.matrix<T>(), out = args.out.matrix<T>(), scale = args.scale.matrix<T>();
  const T* weight = args.weight.data<T>();
  const bool gate_first = args.order == GateOrder::gate_first;
  const int64_t groups = scale ? scale.columns : 1, width = y.columns / groups;
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * width, end = begin + width;
      T squares = 0;
      for (int64_t c = begin; c < end; ++c) {
        const T v = gate_first ? y[t][c] * silu(z[t][c]) : y[t][c];
        squares += v * v;
      }
      const T s = scale ? 1 / std::sqrt(squares / static_cast<T>(width) + static_cast<T>(args.eps)) : T(1);
      if (scale) scale[t][group] = s;
      for (int64_t c = begin; c < end; ++c)  // (1), (2) or (3): the same product
        out[t][c] = y[t][c] * silu(z[t][c]) * s * (weight ? weight[c] : T(1));
    }
  }
}

template <class T>
void backward(const GatedNormBackward& args) {
  const auto y = args.y.matrix<T>(), z = args.z.matrix<T>(), scale = args.scale.matrix<T>(),
             dout = args.dout.matrix<T>(), dy = args.dy.matrix<T>(), dz = args.dz.matrix<T>();
  const T* weight = args.weight.data<T>();
  T* dweight = args.dweight.data<T>();
  if (dweight) args.dweight.fill_zero();
  const bool gate_first = args.order == GateOrder::gate_first;
  const int64_t groups = scale ? scale.columns : 1, width = y.columns / groups;
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * width, end = begin + width;
      const T s = scale ? scale[t][group] : T(1);
      T dot = 0;  // sum of d out times out before the scale: what (5) needs
      for (int64_t c = begin; c < end; ++c) dot += dout[t][c] * (weight ? weight[c] : T(1)) * y[t][c] * silu(z[t][c]);
      const T shared = scale ? dot * s * s * s / static_cast<T>(width) : T(0);
      for (int64_t c = begin; c < end; ++c) {
        const T w = weight ? weight[c] : T(1), gating = silu(z[t][c]);
        // (5): what reaches the normed value, and from there y and z.
        const T normed = gate_first ? y[t][c] * gating : y[t][c];
        const T direct = gate_first ? dout[t][c] * w : dout[t][c] * w * gating;
        const T dnormed = direct * s - normed * shared;
        if (dy) dy[t][c] = gate_first ? dnormed * gating : dnormed;                                      // (6)
        if (dz) dz[t][c] = (gate_first ? dnormed : dout[t][c] * w * s) * y[t][c] * silu_slope(z[t][c]);  // (7)
        if (dweight) dweight[c] += dout[t][c] * y[t][c] * gating * s;                                    // (8)
      }
    }
  }
}

}  // namespace

void gated_rms_norm_forward(const GatedNormForward& args, Threads&) {
  args.y.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void gated_rms_norm_backward(const GatedNormBackward& args, Threads&) {
  args.y.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
