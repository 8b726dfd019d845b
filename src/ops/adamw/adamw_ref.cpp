// The definition of adamw in plain loops, f32 and f64. Equations: adamw.h, README.md.
#include "ops/adamw/adamw.h"

namespace ssm::ref {
namespace {

template <class T>
void update(const AdamWUpdate& args) {
  const AdamWStep& step = args.step;
  const T towards_g = static_cast<T>(1 - step.beta1), beta2 = static_cast<T>(step.beta2);
  const T rest2 = static_cast<T>(1 - step.beta2), eps = static_cast<T>(step.eps);
  const T decay = static_cast<T>(step.decay()), rate = static_cast<T>(step.rate());
  const T correction = static_cast<T>(step.root_correction()), scale = static_cast<T>(step.gradient_scale);
  T *w = args.value.data<T>(), *m = args.m.data<T>(), *v = args.v.data<T>();
  const T* gradient = args.gradient.data<T>();
  for (int64_t i = 0; i < args.value.count(); ++i) {
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

void adamw_update(const AdamWUpdate& args, Threads&) {
  args.value.dtype() == DType::f64 ? update<double>(args) : update<float>(args);
}

double sum_of_squares(const Tensor& tensor, Threads&) {
  return tensor.dtype() == DType::f64 ? squares<double>(tensor) : squares<float>(tensor);
}

}  // namespace ssm::ref
