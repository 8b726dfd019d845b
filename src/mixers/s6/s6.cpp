// S6: parameters with their initial values, and the forward pass.
#include "mixers/s6/s6.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/error.h"
#include "mixers/dt_bias.h"
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

Fields S6Config::fields() {
  return {{"d_state", &d_state, "states a channel, N"},
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
          {"b_c_dt_rms_eps", &b_c_dt_rms_eps, "epsilon of the norm of B, C and dt (FalconMamba); 0: no norm"},
          {"selective", &selective, "what depends on the token: dtBC, or some of dt, B and C, or none"}};
}

std::unique_ptr<InnerLayer> S6Config::build(const Params& params, int64_t e, int64_t d_model) const {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, "ssm_cfg: ", name, " is ", value, ", expected ", low, " to ", high);
  };
  within("d_state", d_state, 1, 1 << 16);
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
  return std::make_unique<S6>(params, *this, e, d_model);
}

S6::S6(const Params& params, const S6Config& config, int64_t e, int64_t d_model)
    : e_(e),
      n_(config.d_state),
      r_(config.dt_rank > 0 ? config.dt_rank : (d_model + 15) / 16),
      b_c_dt_rms_eps_(config.b_c_dt_rms_eps),
      state_dtype_(accumulator_of(params.dtype())) {
  const Init one = Init::constant(1);
  const double dt_bound = config.dt_scale / std::sqrt(static_cast<double>(r_));
  const Init dt_init = config.dt_init == "random" ? Init::uniform(dt_bound) : Init::constant(dt_bound);
  const Flags f32_no_decay{.no_decay = true, .keep_f32 = true};

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
}

Var S6::forward(const Ctx& ctx, const Var& x, const Var& z, const Seqs& seqs, State state) const {
  const StepMaps maps = step_maps(ctx, x);
  return selective_scan(ctx,  // (t, e)
                        {.x = x,
                         .dt = maps.dt,
                         .A_log = A_log_,
                         .B = maps.B,
                         .C = maps.C,
                         .D = D_,
                         .dt_bias = dt_bias_,
                         .z = z,
                         .dt_weight = dt_proj_,
                         .rates = kept_rates(ctx)},
                        seqs, state.empty() ? nullptr : &state[0]);
}

// dt (t, r) before its projection, or (t, e); B, C (t, n).
S6::StepMaps S6::step_maps(const Ctx& ctx, const Var& x) const {
  const int64_t t = x.value.size(0), r = dt_proj_ ? r_ : 0, b = B_ ? 0 : n_, c = C_ ? 0 : n_;
  std::vector<Var> selected(3);
  if (x_proj_) selected = split(ctx, linear(ctx, x, x_proj_), {r, b, c});
  return {.dt = dt_proj_ ? normed(ctx, selected[0]) : ctx.output(Tensor::zeros({t, e_}, x.value.dtype(), ctx.device)),
          .B = B_ ? same_for_all(ctx, B_, t, x.value.dtype()) : normed(ctx, selected[1]),
          .C = C_ ? same_for_all(ctx, C_, t, x.value.dtype()) : normed(ctx, selected[2])};
}

Var S6::normed(const Ctx& ctx, const Var& x) const {
  return b_c_dt_rms_eps_ > 0 ? rms_norm(ctx, x, {}, {}, b_c_dt_rms_eps_).y : x;
}

// Weights that have a gradient change between calls.
Tensor S6::kept_rates(const Ctx& ctx) const {
  if (ctx.tape || A_log_.grad) return {};
  if (!rates_) rates_ = scan_rates(ctx, A_log_.value);
  return rates_;
}

StateSpec S6::state() const { return {{"ssm", {n_, e_}, state_dtype_}}; }

}  // namespace ssm
