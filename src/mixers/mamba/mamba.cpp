// Mamba's block: parameters with their initial values, and the forward pass as in the paper's figure 3.
#include "mixers/mamba/mamba.h"

#include <cmath>

#include "ops/conv1d/conv1d.h"
#include "ops/linear/linear.h"

namespace ssm {

Fields MambaConfig::fields() {
  Fields all = inner.chosen().fields();
  const Fields block = {{"d_conv", &d_conv, "taps of the causal convolution"},
                        {"expand", &expand, "inner width over model width"},
                        {"d_inner", &d_inner, "inner width; 0: expand * d_model"},
                        {"conv_bias", &conv_bias, "bias in the convolution"},
                        {"bias", &bias, "bias in in_proj and out_proj"},
                        inner.field(),
                        {"use_fast_path", &use_fast_path, "of the reference implementation; without effect"}};
  all.insert(all.end(), block.begin(), block.end());
  return all;
}

std::unique_ptr<Mixer> MambaConfig::build(const Params& params, int64_t d_model, int64_t layers) const {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, "ssm_cfg: ", name, " is ", value, ", expected ", low, " to ", high);
  };
  within("d_conv", d_conv, 1, 1 << 16);
  within("expand", expand, 1, 1 << 10);
  within("d_inner", d_inner, 0, 1 << 24);
  return std::make_unique<Mamba>(params, *this, d_model, layers);
}

Mamba::Mamba(const Params& params, const MambaConfig& config, int64_t d_model, int64_t layers)
    : e_(config.d_inner > 0 ? config.d_inner : config.expand * d_model),
      w_(config.d_conv),
      state_dtype_(accumulator_of(params.dtype())) {
  const Init zero = Init::constant(0);
  const Flags f32{.keep_f32 = true}, f32_no_decay{.no_decay = true, .keep_f32 = true};

  in_proj_ = params.get("in_proj.weight", {2 * e_, d_model}, Init::fan_in(d_model));
  if (config.bias) in_bias_ = params.get("in_proj.bias", {2 * e_}, zero, f32_no_decay);
  conv_weight_ = params.get("conv1d.weight", {e_, 1, w_}, Init::fan_in(w_), f32);
  if (config.conv_bias) conv_bias_ = params.get("conv1d.bias", {e_}, Init::fan_in(w_), f32_no_decay);
  inner_ = config.inner.chosen().build(params, e_, d_model);
  // One residual branch a layer: their sum keeps its size at any depth (GPT-2's rule, as the reference applies it).
  out_proj_ =
      params.get("out_proj.weight", {d_model, e_}, Init::fan_in(e_, 1 / std::sqrt(static_cast<double>(layers))));
  if (config.bias) out_bias_ = params.get("out_proj.bias", {d_model}, zero, f32_no_decay);
}

Var Mamba::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  Var* const conv_state = state.empty() ? nullptr : &state[0];
  const State inner_state = state.empty() ? state : state.subspan(1);

  const auto xz = split(ctx, linear(ctx, u, in_proj_, in_bias_), {e_, e_});  // (t, e) each
  const auto gated_ssm = [=, this](const Ctx& c, const std::vector<Var>& in) -> std::vector<Var> {
    const Var x = conv1d(c, in[0], conv_weight_, conv_bias_, Activation::silu, seqs, conv_state);  // (t, e)
    return {inner_->forward(c, x, in[1], seqs, inner_state)};
  };
  const bool again = ctx.tape && ctx.recompute == Recompute::cheap && ctx.device.is_cuda() && state.empty() &&
                     inner_->cheap_to_repeat();
  const Var y = (again ? recompute(ctx, "selective_ssm", true, xz, gated_ssm) : gated_ssm(ctx, xz))[0];
  // What is added to the residual stream is not rounded before.
  return linear(ctx, y, out_proj_, out_bias_, accumulator_of(y.value.dtype()));  // (t, d)
}

StateSpec Mamba::state() const {
  StateSpec all = {{"conv", {w_ - 1, e_}, state_dtype_}};
  for (StateEntry& entry : inner_->state()) all.push_back(std::move(entry));
  return all;
}

}  // namespace ssm
