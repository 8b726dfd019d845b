// AdamW over all parameters of a model, with clipping by the global norm. What is updated, and the moments, are f32
// also where a model computes in bf16 or f16. Weight decay falls on parameters of two or more dimensions that are not
// marked no_decay. `lr` is this step's rate, peak_lr its largest in the run: a parameter that declares a rate of its
// own follows the same curve from that.
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/error.h"
#include "core/params.h"
#include "formats/safetensors.h"
#include "ops/adamw/adamw.h"
#include "train/train_config.h"

namespace ssm {

class Optimizer {
 public:
  // Starts with moments of zero. The store must outlive this.
  explicit Optimizer(const ParamStore& params);

  // One update from the gradients in the store; `step` counts from 1. Returns the global norm before clipping. A
  // gradient that is NaN or infinite throws Error naming step and parameter, and nothing is changed.
  double update(const Ctx& ctx, const OptimizerConfig& config, double lr, double peak_lr, int64_t step);
  // The same on a GPU, queued: the norm, f64 (1), is there later; if it is not finite, or the condition does not hold,
  // nothing is changed.
  Tensor queue_update(const Ctx& ctx, const OptimizerConfig& config, double lr, double peak_lr, int64_t step,
                      const AdamWCondition& condition) const;
  // What is wrong with the gradients in the store, when that norm is not finite.
  Error not_finite(int64_t step) const;

  // The moments as "m.NAME" and "v.NAME", on the host: those of a GPU are copies, others share memory with this.
  NamedTensors tensors() const;
  // The inverse; `where` (a file) opens error messages.
  void load(const TensorMap& tensors, const std::string& where);

 private:
  struct Moments {
    Tensor m, v;
  };
  std::vector<AdamWItem> items(const OptimizerConfig& config, double peak_lr) const;

  const ParamStore& params_;
  std::vector<Moments> moments_;  // in the order of the store
};

}  // namespace ssm
