// The LSTM mixer: parameters with their initial values, and the forward pass.
#include "mixers/lstm/lstm.h"

#include <cmath>

#include "ops/linear/linear.h"
#include "ops/lstm/lstm.h"

namespace ssm {

Fields LstmConfig::fields() {
  return {{"expand", &expand, "hidden width over model width"}, {"bias", &bias, "bias in the gates and in out_proj"}};
}

std::unique_ptr<Mixer> LstmConfig::build(const Params& params, int64_t d_model, int64_t layers) const {
  require(1 <= expand && expand <= 1 << 10, "ssm_cfg: expand is ", expand, ", expected 1 to ", 1 << 10);
  return std::make_unique<Lstm>(params, *this, d_model, layers);
}

Lstm::Lstm(const Params& params, const LstmConfig& config, int64_t d_model, int64_t layers)
    : e_(config.expand * d_model), state_dtype_(params.dtype() == DType::f64 ? DType::f64 : DType::f32) {
  const Init uniform = Init::fan_in(e_);  // PyTorch's, for all of an LSTM
  const Flags f32{.keep_f32 = true}, f32_no_decay{.no_decay = true, .keep_f32 = true};
  const Params lstm = params.sub("lstm");
  weight_ih_ = lstm.get("weight_ih_l0", {4 * e_, d_model}, uniform);
  weight_hh_ = lstm.get("weight_hh_l0", {4 * e_, e_}, uniform, f32);
  if (config.bias) {
    bias_ih_ = lstm.get("bias_ih_l0", {4 * e_}, uniform, f32_no_decay);
    bias_hh_ = lstm.get("bias_hh_l0", {4 * e_}, uniform, f32_no_decay);
  }
  // One residual branch a layer: their sum keeps its size at any depth, as in the other mixers.
  out_proj_ =
      params.get("out_proj.weight", {d_model, e_}, Init::fan_in(e_, 1 / std::sqrt(static_cast<double>(layers))));
  if (config.bias) out_bias_ = params.get("out_proj.bias", {d_model}, Init::constant(0), f32_no_decay);
}

Var Lstm::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  Var* const h = state.empty() ? nullptr : &state[0];
  Var* const c = state.empty() ? nullptr : &state[1];
  const Var gates = linear(ctx, u, weight_ih_, bias_ih_);                 // (t, 4 e)
  const Var hidden = lstm(ctx, gates, weight_hh_, bias_hh_, seqs, h, c);  // (t, e)
  return linear(ctx, hidden, out_proj_, out_bias_);                       // (t, d)
}

StateSpec Lstm::state() const { return {{"h", {e_}, state_dtype_}, {"c", {e_}, state_dtype_}}; }

}  // namespace ssm
