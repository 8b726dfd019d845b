// The optimiser's arithmetic: AdamW (Loshchilov & Hutter 2019) as torch.optim.AdamW computes it, the norm for clipping,
// and the search for what is not finite.
//
//   g = gradient_scale * gradient                                                     (1)
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2                      (2)
//   w = (1 - lr weight_decay) w - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)   (3)
//
// All tensors of one shape, contiguous, f32 (f32 or f64 on ref); value, m and v are changed in place. Steps count from
// 1. Traffic: 28 bytes an element.
#pragma once

#include <cmath>
#include <optional>

#include "core/context.h"

namespace ssm {

struct AdamWStep {
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;
  double gradient_scale = 1;  // clipping, applied as the gradient is read

  double decay() const { return 1 - lr * weight_decay; }
  double rate() const { return lr / (1 - std::pow(beta1, static_cast<double>(step))); }
  double root_correction() const { return 1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(step))); }
};

void adamw(const Ctx& ctx, const Tensor& value, const Tensor& gradient, const Tensor& m, const Tensor& v,
           const AdamWStep& step);

// The sum of squares, in double: finite exactly if every element of an f32 tensor is.
double squared_norm(const Ctx& ctx, const Tensor& tensor);

// The row-major index of the first NaN or infinity. One thread: for saying where, after squared_norm said that.
std::optional<int64_t> first_not_finite(const Tensor& tensor);

struct AdamWUpdate {
  Tensor value, gradient, m, v;
  AdamWStep step;
};

namespace ref {
void adamw_update(const AdamWUpdate&, Threads&);
double sum_of_squares(const Tensor&, Threads&);
}  // namespace ref
namespace cpu {
void adamw_update(const AdamWUpdate&, Threads&);
double sum_of_squares(const Tensor&, Threads&);
}  // namespace cpu

}  // namespace ssm
