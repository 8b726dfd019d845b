// The Mamba-2 mixer: parameters with their initial values, and the forward pass.
#include "mixers/mamba2/mamba2.h"

#include <cmath>

#include "mixers/dt_bias.h"
#include "ops/conv1d/conv1d.h"
#include "ops/gated_rms_norm/gated_rms_norm.h"
#include "ops/linear/linear.h"
#include "ops/ssd/ssd.h"

namespace ssm {
namespace {

// -A is uniform in the range.
Init A_log_init(const std::vector<double>& range) {
  return Init::custom([low = range[0], high = range[1]](const Rng& rng, int64_t i) {
    return std::log(low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
  });
}

}  // namespace

Fields Mamba2Config::fields() {
  return {{"d_state", &d_state, "states a channel, N"},
          {"d_conv", &d_conv, "taps of the causal convolution"},
          {"conv_init", &conv_init, "bound of the initial convolution weights; null: 1 / sqrt(d_conv)"},
          {"expand", &expand, "inner width over model width"},
          {"headdim", &headdim, "channels of a head"},
          {.name = "d_ssm",
           .target = &d_ssm,
           .help = "channels of the state space model, the others are gated only; null: all",
           .word = "null",
           .word_value = 0},
          {"ngroups", &ngroups, "groups of heads, each with B and C of its own"},
          {"A_init_range", &A_init_range, "initial -A are uniform in this range"},
          {"D_has_hdim", &D_has_hdim, "D of channels instead of heads"},
          {"rmsnorm", &rmsnorm, "norm with the gate, before out_proj"},
          {"norm_before_gate", &norm_before_gate, "norm first, then gate"},
          {"norm_epsilon", &norm_epsilon, "of that norm"},
          {"dt_min", &dt_min, "smallest initial step size"},
          {"dt_max", &dt_max, "largest initial step size"},
          {"dt_init_floor", &dt_init_floor, "initial step sizes are at least this"},
          {"dt_limit", &dt_limit, "step sizes are limited to this range"},
          {"bias", &bias, "bias in in_proj and out_proj"},
          {"conv_bias", &conv_bias, "bias in the convolution"},
          {"chunk_size", &chunk_size, "of the reference implementation; without effect"},
          {"use_mem_eff_path", &use_mem_eff_path, "of the reference implementation; without effect"},
          {"process_group", &process_group, "of the reference implementation; without effect"},
          {"sequence_parallel", &sequence_parallel, "of the reference implementation; without effect"}};
}

std::unique_ptr<Mixer> Mamba2Config::build(const Params& params, int64_t d_model, int64_t layers) const {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, "ssm_cfg: ", name, " is ", value, ", expected ", low, " to ", high);
  };
  within("d_state", d_state, 1, 1 << 16);
  within("d_conv", d_conv, 1, 1 << 16);
  within("expand", expand, 1, 1 << 10);
  const int64_t inner = expand * d_model;
  within("headdim", headdim, 1, inner);
  within("d_ssm", d_ssm, 0, inner);
  const int64_t channels = d_ssm > 0 ? d_ssm : inner;
  require(channels % headdim == 0, "ssm_cfg: ", d_ssm > 0 ? "d_ssm is " : "expand times d_model is ", channels,
          ", expected a multiple of headdim, ", headdim);
  const int64_t heads = channels / headdim;
  require(ngroups > 0 && heads % ngroups == 0, "ssm_cfg: ngroups is ", ngroups, ", expected a divisor of the ", heads,
          " heads (", channels, " channels in heads of headdim ", headdim, ")");
  require(std::isnan(conv_init) || (conv_init >= 0 && std::isfinite(conv_init)), "ssm_cfg: conv_init is ", conv_init,
          ", expected a bound >= 0 or null");
  require(A_init_range.size() == 2 && 0 < A_init_range[0] && A_init_range[0] <= A_init_range[1] &&
              std::isfinite(A_init_range[1]),
          "ssm_cfg: A_init_range is not two numbers with 0 < first <= second");
  require(dt_limit.size() == 2 && dt_limit[0] <= dt_limit[1] && dt_limit[1] >= 0,
          "ssm_cfg: dt_limit is not two numbers with first <= second and second >= 0");
  require(0 < dt_min && dt_min <= dt_max && std::isfinite(dt_max), "ssm_cfg: dt_min is ", dt_min, " and dt_max ",
          dt_max, ", expected 0 < dt_min <= dt_max");
  require(dt_init_floor > 0 && std::isfinite(dt_init_floor), "ssm_cfg: dt_init_floor is ", dt_init_floor,
          ", expected a positive number");
  require(norm_epsilon >= 0 && std::isfinite(norm_epsilon), "ssm_cfg: norm_epsilon is ", norm_epsilon,
          ", expected a number >= 0");
  return std::make_unique<Mamba2>(params, *this, d_model, layers);
}

Mamba2::Mamba2(const Params& params, const Mamba2Config& config, int64_t d_model, int64_t layers)
    : config_(config),
      e_(config.d_ssm > 0 ? config.d_ssm : config.expand * d_model),
      rest_(config.expand * d_model - e_),
      m_(e_ / config.headdim),
      p_(config.headdim),
      g_(config.ngroups),
      n_(config.d_state),
      w_(config.d_conv),
      state_dtype_(params.dtype() == DType::f64 ? DType::f64 : DType::f32) {
  const Init zero = Init::constant(0), one = Init::constant(1), conv_default = Init::fan_in(w_);
  const Flags f32{.keep_f32 = true}, f32_no_decay{.no_decay = true, .keep_f32 = true};
  const int64_t inner = rest_ + e_, xBC = e_ + 2 * g_ * n_, projected = 2 * rest_ + e_ + xBC + m_;

  in_proj_ = params.get("in_proj.weight", {projected, d_model}, Init::fan_in(d_model));
  if (config.bias) in_bias_ = params.get("in_proj.bias", {projected}, zero, f32_no_decay);
  conv_weight_ = params.get("conv1d.weight", {xBC, 1, w_},
                            std::isnan(config.conv_init) ? conv_default : Init::uniform(config.conv_init), f32);
  if (config.conv_bias) conv_bias_ = params.get("conv1d.bias", {xBC}, conv_default, f32_no_decay);
  dt_bias_ =
      params.get("dt_bias", {m_}, dt_bias_init(config.dt_min, config.dt_max, config.dt_init_floor), f32_no_decay);
  A_log_ = params.get("A_log", {m_}, A_log_init(config.A_init_range), f32_no_decay);
  D_ = params.get("D", {config.D_has_hdim ? e_ : m_}, one, f32_no_decay);
  if (config.rmsnorm) norm_ = params.get("norm.weight", {e_}, one, f32_no_decay);
  // One residual branch a layer: their sum keeps its size at any depth (GPT-2's rule, as the reference applies it).
  out_proj_ =
      params.get("out_proj.weight", {d_model, inner}, Init::fan_in(inner, 1 / std::sqrt(static_cast<double>(layers))));
  if (config.bias) out_bias_ = params.get("out_proj.bias", {d_model}, zero, f32_no_decay);
}

Var Mamba2::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  Var* const conv_state = state.empty() ? nullptr : &state[0];
  Var* const S = state.empty() ? nullptr : &state[1];
  const int64_t xBC_width = e_ + 2 * g_ * n_;

  const Var projected = linear(ctx, u, in_proj_, in_bias_);
  const auto parts =
      rest_ > 0 ? split(ctx, projected, {rest_, rest_, e_, xBC_width, m_}) : split(ctx, projected, {e_, xBC_width, m_});
  const Var &z = parts[parts.size() - 3], &dt = parts[parts.size() - 1];  // (t, e), (t, m)
  const Var convolved =
      conv1d(ctx, parts[parts.size() - 2], conv_weight_, conv_bias_, Activation::silu, seqs, conv_state);
  const auto xBC = split(ctx, convolved, {e_, g_ * n_, g_ * n_});  // (t, e), (t, g n), (t, g n)
  const Var y = ssd(ctx,
                    {.x = xBC[0],
                     .dt = dt,
                     .A_log = A_log_,
                     .B = xBC[1],
                     .C = xBC[2],
                     .D = D_,
                     .dt_bias = dt_bias_,
                     .groups = g_,
                     .dt_min = config_.dt_limit[0],
                     .dt_max = config_.dt_limit[1]},
                    seqs, S);  // (t, e)
  const GateOrder order = config_.norm_before_gate ? GateOrder::norm_first : GateOrder::gate_first;
  Var out = config_.rmsnorm ? gated_rms_norm(ctx, y, z, norm_, g_, config_.norm_epsilon, order) : gate(ctx, y, z);
  if (rest_ > 0) out = join(ctx, gate(ctx, parts[1], parts[0]), out);  // (t, rest + e)
  return linear(ctx, out, out_proj_, out_bias_);                       // (t, d)
}

StateSpec Mamba2::state() const {
  return {{"conv", {w_ - 1, e_ + 2 * g_ * n_}, state_dtype_}, {"ssm", {m_, n_, p_}, state_dtype_}};
}

}  // namespace ssm
