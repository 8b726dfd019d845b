// S4's block: parameters with their initial values, and the forward pass.
#include "mixers/s4_block/s4_block.h"

#include "ops/activation/activation.h"
#include "ops/linear/linear.h"

namespace ssm {

std::unique_ptr<Mixer> S4BlockConfig::build(const Params& params, int64_t d_model, int64_t) const {
  return std::make_unique<S4Block>(params, inner.chosen(), d_model);
}

S4Block::S4Block(const Params& params, const InnerConfig& inner, int64_t d_model)
    : inner_(inner.build(params.sub("layer"), d_model, d_model)) {
  const Params output = params.sub("output_linear").sub("0");
  output_ = output.get("weight", {2 * d_model, d_model}, Init::fan_in(d_model));
  output_bias_ = output.get("bias", {2 * d_model}, Init::fan_in(d_model), {.no_decay = true, .keep_f32 = true});
}

Var S4Block::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  const Var y = inner_->forward(ctx, u, {}, seqs, state);             // (t, d)
  return glu(ctx, linear(ctx, gelu(ctx, y), output_, output_bias_));  // (t, d)
}

}  // namespace ssm
