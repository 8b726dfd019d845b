// Parameters and forward pass of the gated MLP.
#include "models/gated_mlp.h"

#include <cmath>

#include "ops/gated_rms_norm/gated_rms_norm.h"
#include "ops/linear/linear.h"

namespace ssm {

GatedMlp::GatedMlp(const Params& params, int64_t d_model, int64_t width, int64_t layers)
    : f_((width + 127) / 128 * 128),
      fc1_(params.get("fc1.weight", {2 * f_, d_model}, Init::fan_in(d_model))),
      // Scaled like a mixer's out_proj. The reference means to divide by sqrt(2 layers) and draws anew without the 2.
      fc2_(params.get("fc2.weight", {d_model, f_}, Init::fan_in(f_, 1 / std::sqrt(static_cast<double>(layers))))) {}

Var GatedMlp::forward(const Ctx& ctx, const Var& x) const {
  const auto halves = split(ctx, linear(ctx, x, fc1_), {f_, f_});
  return linear(ctx, gate(ctx, halves[0], halves[1]), fc2_);
}

}  // namespace ssm
