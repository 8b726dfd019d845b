// The Mamba mixer: parameters with their initial values, and the forward pass as in the paper's algorithm 2 and
// figure 3.
#include "mixers/mamba/mamba.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "mixers/dt_bias.h"
#include "ops/conv1d/conv1d.h"
#include "ops/linear/linear.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/selective_scan/selective_scan.h"

namespace ssm {
namespace {

// S4D-Real: A_n = -n for n = 1 .. N in every channel.
Init s4d_real_init(int64_t states) {
  return Init::custom([states](const Rng&, int64_t i) { return std::log(static_cast<double>(i % states + 1)); });
}

struct Selected {
  bool dt, B, C;
};

std::optional<Selected> selects(const std::string& word) {
  for (const bool dt : {true, false})
    for (const bool B : {true, false})
      for (const bool C : {true, false}) {
        const std::string name = std::string(dt ? "dt" : "") + (B ? "B" : "") + (C ? "C" : "");
        if (word == (name.empty() ? "none" : name)) return Selected{dt, B, C};
      }
  return {};
}

// The same row for each of t tokens: ones (t, 1) times vector (n, 1) transposed, so its gradient is a sum over tokens.
Var same_for_all(const Ctx& ctx, const Var& vector, int64_t t, DType dtype) {
  const Tensor ones = Tensor::empty({t, 1}, DType::f32);
  std::fill_n(ones.data<float>(), t, 1.0F);
  return linear(ctx, {ones.to(dtype).on(ctx.device), {}}, vector);
}

}  // namespace

Fields MambaConfig::fields() {
  return {{"d_state", &d_state, "states a channel, N"},
          {"d_conv", &d_conv, "taps of the causal convolution"},
          {"expand", &expand, "inner width over model width"},
          {"d_inner", &d_inner, "inner width; 0: expand * d_model"},
          {.name = "dt_rank",
           .target = &dt_rank,
           .help = "rank of the projection to dt; auto: d_model / 16, rounded up",
           .word = "auto",
           .word_value = 0},
          {"dt_min", &dt_min, "smallest initial step size"},
          {"dt_max", &dt_max, "largest initial step size"},
          {"dt_init", &dt_init, "initial dt_proj.weight: random or constant"},
          {"dt_scale", &dt_scale, "factor on the initial dt_proj.weight"},
          {"dt_init_floor", &dt_init_floor, "initial step sizes are at least this"},
          {"conv_bias", &conv_bias, "bias in the convolution"},
          {"bias", &bias, "bias in in_proj and out_proj"},
          {"b_c_dt_rms_eps", &b_c_dt_rms_eps, "epsilon of the norm of B, C and dt (FalconMamba); 0: no norm"},
          {"selective", &selective, "what depends on the token: dtBC, or some of dt, B and C, or none"},
          {"use_fast_path", &use_fast_path, "of the reference implementation; without effect"}};
}

std::unique_ptr<Mixer> MambaConfig::build(const Params& params, int64_t d_model, int64_t layers) const {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, "ssm_cfg: ", name, " is ", value, ", expected ", low, " to ", high);
  };
  within("d_state", d_state, 1, 1 << 16);
  within("d_conv", d_conv, 1, 1 << 16);
  within("expand", expand, 1, 1 << 10);
  within("d_inner", d_inner, 0, 1 << 24);
  within("dt_rank", dt_rank, 0, 1 << 20);
  require(b_c_dt_rms_eps >= 0 && std::isfinite(b_c_dt_rms_eps), "ssm_cfg: b_c_dt_rms_eps is ", b_c_dt_rms_eps,
          ", expected a small number or 0");
  require(dt_init == "random" || dt_init == "constant", "ssm_cfg: dt_init is \"", dt_init,
          "\", expected random or constant");
  require(0 < dt_min && dt_min <= dt_max && std::isfinite(dt_max), "ssm_cfg: dt_min is ", dt_min, " and dt_max ",
          dt_max, ", expected 0 < dt_min <= dt_max");
  require(dt_init_floor > 0 && std::isfinite(dt_init_floor) && std::isfinite(dt_scale), "ssm_cfg: dt_init_floor is ",
          dt_init_floor, " and dt_scale ", dt_scale, ", expected a positive floor");
  require(selects(selective).has_value(), "ssm_cfg: selective is \"", selective,
          "\", expected dtBC, dtB, dtC, BC, dt, B, C or none");
  return std::make_unique<Mamba>(params, *this, d_model, layers);
}

Mamba::Mamba(const Params& params, const MambaConfig& config, int64_t d_model, int64_t layers)
    : e_(config.d_inner > 0 ? config.d_inner : config.expand * d_model),
      n_(config.d_state),
      r_(config.dt_rank > 0 ? config.dt_rank : (d_model + 15) / 16),
      w_(config.d_conv),
      b_c_dt_rms_eps_(config.b_c_dt_rms_eps),
      state_dtype_(params.dtype() == DType::f64 ? DType::f64 : DType::f32) {
  const Init zero = Init::constant(0), one = Init::constant(1);
  const double dt_bound = config.dt_scale / std::sqrt(static_cast<double>(r_));
  const Init dt_init = config.dt_init == "random" ? Init::uniform(dt_bound) : Init::constant(dt_bound);
  const Flags f32{.keep_f32 = true}, f32_no_decay{.no_decay = true, .keep_f32 = true};

  in_proj_ = params.get("in_proj.weight", {2 * e_, d_model}, Init::fan_in(d_model));
  if (config.bias) in_bias_ = params.get("in_proj.bias", {2 * e_}, zero, f32_no_decay);
  conv_weight_ = params.get("conv1d.weight", {e_, 1, w_}, Init::fan_in(w_), f32);
  if (config.conv_bias) conv_bias_ = params.get("conv1d.bias", {e_}, Init::fan_in(w_), f32_no_decay);
  const Selected selected = *selects(config.selective);
  const int64_t maps = (selected.dt ? r_ : 0) + (selected.B ? n_ : 0) + (selected.C ? n_ : 0);
  if (maps > 0) x_proj_ = params.get("x_proj.weight", {maps, e_}, Init::fan_in(e_));
  if (selected.dt) dt_proj_ = params.get("dt_proj.weight", {e_, r_}, dt_init);
  if (!selected.B) B_ = params.get("B", {n_, 1}, one, {.no_decay = true});
  if (!selected.C) C_ = params.get("C", {n_, 1}, Init::normal(1), {.no_decay = true});
  dt_bias_ =
      params.get("dt_proj.bias", {e_}, dt_bias_init(config.dt_min, config.dt_max, config.dt_init_floor), f32_no_decay);
  A_log_ = params.get("A_log", {e_, n_}, s4d_real_init(n_), f32_no_decay);
  D_ = params.get("D", {e_}, one, f32_no_decay);
  // One residual branch a layer: their sum keeps its size at any depth (GPT-2's rule, as the reference applies it).
  out_proj_ =
      params.get("out_proj.weight", {d_model, e_}, Init::fan_in(e_, 1 / std::sqrt(static_cast<double>(layers))));
  if (config.bias) out_bias_ = params.get("out_proj.bias", {d_model}, zero, f32_no_decay);
}

Var Mamba::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  Var* const conv_state = state.empty() ? nullptr : &state[0];
  Var* const h = state.empty() ? nullptr : &state[1];

  const auto xz = split(ctx, linear(ctx, u, in_proj_, in_bias_), {e_, e_});  // (t, e) each
  const auto selective_ssm = [=, this](const Ctx& c, const std::vector<Var>& in) -> std::vector<Var> {
    const Var x = conv1d(c, in[0], conv_weight_, conv_bias_, Activation::silu, seqs, conv_state);  // (t, e)
    const StepMaps maps = step_maps(c, x);
    return {selective_scan(c,  // (t, e)
                           {.x = x,
                            .dt = maps.dt,
                            .A_log = A_log_,
                            .B = maps.B,
                            .C = maps.C,
                            .D = D_,
                            .dt_bias = dt_bias_,
                            .z = in[1],
                            .dt_weight = dt_proj_,
                            .rates = kept_rates(c)},
                           seqs, h)};
  };
  // x, dt, B and C are the most there is to save, and little work next to in_proj and the scan.
  const bool again = ctx.tape && ctx.recompute == Recompute::cheap && ctx.device.is_cuda() && state.empty();
  const Var y = (again ? recompute(ctx, "selective_ssm", true, xz, selective_ssm) : selective_ssm(ctx, xz))[0];
  return linear(ctx, y, out_proj_, out_bias_);  // (t, d)
}

// dt (t, r) before its projection, or (t, e); B, C (t, n).
Mamba::StepMaps Mamba::step_maps(const Ctx& ctx, const Var& x) const {
  const int64_t t = x.value.size(0), r = dt_proj_ ? r_ : 0, b = B_ ? 0 : n_, c = C_ ? 0 : n_;
  std::vector<Var> selected(3);
  if (x_proj_) selected = split(ctx, linear(ctx, x, x_proj_), {r, b, c});
  return {.dt = dt_proj_ ? normed(ctx, selected[0]) : ctx.output(Tensor::zeros({t, e_}, x.value.dtype(), ctx.device)),
          .B = B_ ? same_for_all(ctx, B_, t, x.value.dtype()) : normed(ctx, selected[1]),
          .C = C_ ? same_for_all(ctx, C_, t, x.value.dtype()) : normed(ctx, selected[2])};
}

Var Mamba::normed(const Ctx& ctx, const Var& x) const {
  return b_c_dt_rms_eps_ > 0 ? rms_norm(ctx, x, {}, {}, b_c_dt_rms_eps_).y : x;
}

// Weights that have a gradient change between calls.
Tensor Mamba::kept_rates(const Ctx& ctx) const {
  if (ctx.tape || A_log_.grad) return {};
  if (!rates_) rates_ = scan_rates(ctx, A_log_.value);
  return rates_;
}

StateSpec Mamba::state() const { return {{"conv", {w_ - 1, e_}, state_dtype_}, {"ssm", {n_, e_}, state_dtype_}}; }

}  // namespace ssm
