// The definition of adamw in plain loops, f32 and f64. Equations: adamw.h, README.md.
#include "ops/adamw/adamw.h"

namespace ssm::ref {
namespace {

template <class T>
void update(const AdamWItem& item, const AdamWStep& step, double gradient_scale) {
  const T towards_g = static_cast<T>(1 - step.beta1), beta2 = static_cast<T>(step.beta2);
  const T rest2 = static_cast<T>(1 - step.beta2), eps = static_cast<T>(step.eps);
  const T decay = static_cast<T>(step.decay(item)), rate = static_cast<T>(step.rate(item));
  const T correction = static_cast<T>(step.root_correction()), scale = static_cast<T>(gradient_scale);
  T *w = item.value.data<T>(), *m = item.m.data<T>(), *v = item.v.data<T>();
  const T* gradient = item.gradient.data<T>();
  for (int64_t i = 0; i < item.value.count(); ++i) {
    const T g = scale * gradient[i];                                           // (1)
    m[i] += towards_g * (g - m[i]);                                            // (2)
    v[i] = beta2 * v[i] + rest2 * g * g;                                       // (2)
    w[i] = decay * w[i] - rate * m[i] / (std::sqrt(v[i]) * correction + eps);  // (3)
  }
}

template <class T>
double squares(const Tensor& tensor) {
  double sum = 0;
  for (const T value : tensor.span<T>()) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

}  // namespace

void adamw_update(const AdamWItem& item, const AdamWStep& step, double scale, Threads&) {
  item.value.dtype() == DType::f64 ? update<double>(item, step, scale) : update<float>(item, step, scale);
}

double sum_of_squares(const Tensor& tensor, Threads&) {
  return tensor.dtype() == DType::f64 ? squares<double>(tensor) : squares<float>(tensor);
}

}  // namespace ssm::ref
