// The conv mixer: parameters with their initial values, and the forward pass.
#include "mixers/conv/conv.h"

#include <cmath>

#include "ops/conv1d/conv1d.h"
#include "ops/gated_rms_norm/gated_rms_norm.h"
#include "ops/linear/linear.h"

namespace ssm {

Fields ConvConfig::fields() {
  return {{"d_conv", &d_conv, "taps of the causal convolution"},
          {"expand", &expand, "inner width over model width"},
          {"conv_bias", &conv_bias, "bias in the convolution"},
          {"bias", &bias, "bias in in_proj and out_proj"}};
}

std::unique_ptr<Mixer> ConvConfig::build(const Params& params, int64_t d_model, int64_t layers) const {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, "ssm_cfg: ", name, " is ", value, ", expected ", low, " to ", high);
  };
  within("d_conv", d_conv, 1, 1 << 16);
  within("expand", expand, 1, 1 << 10);
  return std::make_unique<Conv>(params, *this, d_model, layers);
}

Conv::Conv(const Params& params, const ConvConfig& config, int64_t d_model, int64_t layers)
    : e_(config.expand * d_model),
      w_(config.d_conv),
      state_dtype_(params.dtype() == DType::f64 ? DType::f64 : DType::f32) {
  const Init zero = Init::constant(0);
  const Flags f32{.keep_f32 = true}, f32_no_decay{.no_decay = true, .keep_f32 = true};
  in_proj_ = params.get("in_proj.weight", {2 * e_, d_model}, Init::fan_in(d_model));
  if (config.bias) in_bias_ = params.get("in_proj.bias", {2 * e_}, zero, f32_no_decay);
  conv_weight_ = params.get("conv1d.weight", {e_, 1, w_}, Init::fan_in(w_), f32);
  if (config.conv_bias) conv_bias_ = params.get("conv1d.bias", {e_}, Init::fan_in(w_), f32_no_decay);
  // One residual branch a layer: their sum keeps its size at any depth, as in the other mixers.
  out_proj_ =
      params.get("out_proj.weight", {d_model, e_}, Init::fan_in(e_, 1 / std::sqrt(static_cast<double>(layers))));
  if (config.bias) out_bias_ = params.get("out_proj.bias", {d_model}, zero, f32_no_decay);
}

Var Conv::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  Var* const conv_state = state.empty() ? nullptr : &state[0];
  const auto xz = split(ctx, linear(ctx, u, in_proj_, in_bias_), {e_, e_});                        // (t, e) each
  const Var y = conv1d(ctx, xz[0], conv_weight_, conv_bias_, Activation::silu, seqs, conv_state);  // (t, e)
  return linear(ctx, gate(ctx, y, xz[1]), out_proj_, out_bias_);                                   // (t, d)
}

StateSpec Conv::state() const { return {{"conv", {w_ - 1, e_}, state_dtype_}}; }

}  // namespace ssm
