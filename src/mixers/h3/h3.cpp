// H3: parameters with their initial values, and the forward pass.
#include "mixers/h3/h3.h"

#include "ops/conv1d/conv1d.h"
#include "ops/linear/linear.h"
#include "ops/multiply/multiply.h"

namespace ssm {
namespace {

// The shift's answer to an impulse and, on the tap of the same token, the published skip D beside it, Normal(0, 1):
// what multiplies that token is one number. Skips are drawn from positions of the stream that taps leave free.
Init shift_init(int64_t channels, int64_t taps) {
  const Init answer = Init::fan_in(taps);
  return Init::custom([=](const Rng& rng, int64_t i) {
    const double skip = i % taps == taps - 1 ? rng.normal(static_cast<uint64_t>(channels * taps + i / taps)) : 0;
    return answer(rng, i) + skip;
  });
}

}  // namespace

Fields H3Config::fields() {
  Fields all = {inner.field(), {"d_conv", &d_conv, "taps of the shift, a causal convolution"}};
  for (Field& field : inner.chosen().fields()) all.push_back(std::move(field));
  return all;
}

std::unique_ptr<Mixer> H3Config::build(const Params& params, int64_t d_model, int64_t) const {
  require(1 <= d_conv && d_conv <= 1 << 16, "ssm_cfg: d_conv is ", d_conv, ", expected 1 to ", 1 << 16);
  return std::make_unique<H3>(params, *this, d_model);
}

H3::H3(const Params& params, const H3Config& config, int64_t d_model)
    : d_(d_model), w_(config.d_conv), state_dtype_(accumulator_of(params.dtype())) {
  const auto projection = [&](std::string_view name) {
    const Params here = params.sub(name);
    return Projection{here.get("weight", {d_, d_}, Init::fan_in(d_)),
                      here.get("bias", {d_}, Init::fan_in(d_), {.no_decay = true, .keep_f32 = true})};
  };
  q_ = projection("q_proj");
  k_ = projection("k_proj");
  v_ = projection("v_proj");
  shift_ = params.get("shift.weight", {d_, 1, w_}, shift_init(d_, w_), {.keep_f32 = true});
  inner_ = config.inner.chosen().build(params, d_, d_);
  output_ = projection("output_linear");
}

Var H3::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  Var* const shifted = state.empty() ? nullptr : &state[0];
  const State inner_state = state.empty() ? state : state.subspan(1);
  const auto project = [&](const Projection& p) { return linear(ctx, u, p.weight, p.bias); };  // (t, d)

  const Var k = conv1d(ctx, project(k_), shift_, {}, Activation::none, seqs, shifted);          // (t, d)
  const Var past = inner_->forward(ctx, multiply(ctx, k, project(v_)), {}, seqs, inner_state);  // (t, d)
  return linear(ctx, multiply(ctx, project(q_), past), output_.weight, output_.bias);           // (t, d)
}

StateSpec H3::state() const {
  StateSpec all = {{"shift", {w_ - 1, d_}, state_dtype_}};
  for (StateEntry& entry : inner_->state()) all.push_back(std::move(entry));
  return all;
}

}  // namespace ssm
