// The optimiser's arithmetic over all parameters of a model at once: AdamW (Loshchilov & Hutter 2019) as
// torch.optim.AdamW computes it, clipped by the global norm as torch.nn.utils.clip_grad_norm_ does.
//
//   s = min(1, clip / (norm + 1e-6)),   g = s * gradient                              (1)
//   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2                      (2)
//   w = (1 - lr weight_decay) w - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)   (3)
//
// norm is that of all gradients together. Traffic: 4 bytes an element for it and 28 for the update, and 2 for a copy.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>

#include "core/context.h"

namespace ssm {

// One parameter; all of one shape, contiguous, and f32 (f32 or f64 on ref) but for the copy.
struct AdamWItem {
  Tensor value, gradient;  // value, m and v are changed in place
  Tensor m, v;
  Tensor copy;  // bf16 or f16: gets the new value, rounded. May be absent
  double weight_decay = 0;
  double lr_scale = 1;  // of the step's lr
};

struct AdamWStep {
  double lr, beta1, beta2, eps;
  double clip = 0;  // the largest norm that is left alone; 0: any
  int64_t step = 1;

  double scale(double norm) const { return clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0; }
  double decay(const AdamWItem& item) const { return 1 - lr * item.lr_scale * item.weight_decay; }
  double rate(const AdamWItem& item) const {
    return lr * item.lr_scale / (1 - std::pow(beta1, static_cast<double>(step)));
  }
  double root_correction() const { return 1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(step))); }
};

// Returns the norm. When it is NaN or infinite, and it is exactly if a gradient of f32 is, nothing was changed. On a
// GPU this waits for all that is queued.
double adamw(const Ctx& ctx, std::span<const AdamWItem> items, const AdamWStep& step);

// What must be finite besides the gradients, on the same GPU; each may be absent.
struct AdamWCondition {
  Tensor losses;  // f32 (any number)
  Tensor norm;    // f64 (1): of the update queued before this one
};

// The same on a GPU, queued: the norm, f64 (1), is there when what is queued has been done. It is NaN, and nothing is
// changed, also when the condition does not hold: of a row of updates none is made after the first that failed.
Tensor queue_adamw(const Ctx& ctx, std::span<const AdamWItem> items, const AdamWStep& step,
                   const AdamWCondition& condition);

// The row-major index of the first NaN or infinity of a tensor on the host. One thread: for saying where, after adamw
// said that.
std::optional<int64_t> first_not_finite(const Tensor& tensor);

namespace ref {
double sum_of_squares(const Tensor& gradient, Threads&);  // in double
void adamw_update(const AdamWItem&, const AdamWStep&, double scale, Threads&);
}  // namespace ref
namespace cpu {
double sum_of_squares(const Tensor& gradient, Threads&);
void adamw_update(const AdamWItem&, const AdamWStep&, double scale, Threads&);
}  // namespace cpu
namespace cuda {
Tensor adamw(std::span<const AdamWItem>, const AdamWStep&, const AdamWCondition&, const Device&);
}  // namespace cuda

}  // namespace ssm
