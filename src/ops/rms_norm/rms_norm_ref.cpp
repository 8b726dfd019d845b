// The definition of rms_norm in plain loops, f32 and f64. Equations: README.md.
#include <cmath>

#include "ops/rms_norm/rms_norm.h"

namespace ssm::ref {
namespace {

template <class T>
void forward(const RmsNormForward& args) {
  const auto x = args.x.matrix<T>(), residual = args.residual.matrix<T>(), y = args.y.matrix<T>(),
             sum = args.sum.matrix<T>();
  const auto weight = args.weight.matrix<T>();  // (d)
  for (int64_t t = 0; t < x.rows; ++t) {
    T squares = 0;
    for (int64_t c = 0; c < x.columns; ++c) {
      const T r = x[t][c] + (residual ? residual[t][c] : T(0));  // (1)
      if (sum) sum[t][c] = r;
      squares += r * r;
    }
    const T scale = 1 / std::sqrt(squares / static_cast<T>(x.columns) + static_cast<T>(args.eps));
    args.scale.data<T>()[t] = scale;
    for (int64_t c = 0; c < x.columns; ++c)
      y[t][c] = (sum ? sum[t][c] : x[t][c]) * scale * (weight ? weight[0][c] : T(1));  // (2)
  }
}

template <class T>
void backward(const RmsNormBackward& args) {
  const auto r = args.sum.matrix<T>(), dy = args.dy.matrix<T>(), dsum = args.dsum.matrix<T>(), dx = args.dx.matrix<T>(),
             dresidual = args.dresidual.matrix<T>();
  const auto weight = args.weight.matrix<T>(), dweight = args.dweight.matrix<T>();  // (d)
  const auto w = [&](int64_t c) { return weight ? weight[0][c] : T(1); };
  if (dweight) args.dweight.fill_zero();
  for (int64_t t = 0; t < r.rows; ++t) {
    const T scale = args.scale.data<T>()[t];
    T dot = 0;
    for (int64_t c = 0; c < r.columns; ++c) {
      dot += dy[t][c] * w(c) * r[t][c];
      if (dweight) dweight[0][c] += dy[t][c] * r[t][c] * scale;  // (4)
    }
    const T shared = dot * scale * scale * scale / static_cast<T>(r.columns);
    for (int64_t c = 0; c < r.columns; ++c) {
      const T dr = dy[t][c] * w(c) * scale - r[t][c] * shared + (dsum ? dsum[t][c] : T(0));  // (3)
      if (dx) dx[t][c] = dr;
      if (dresidual) dresidual[t][c] = dr;
    }
  }
}

}  // namespace

void rms_norm_forward(const RmsNormForward& args, Threads&) {
  args.x.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void rms_norm_backward(const RmsNormBackward& args, Threads&) {
  args.sum.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
