// The parameters that S4 and S4D have in common, their initial values, and the forward pass.
#include "mixers/inner/lti.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/diag_scan/diag_scan.h"
#include "ops/fft_conv/fft_conv.h"
#include "ops/gated_rms_norm/gated_rms_norm.h"
#include "ops/ssm_kernel/ssm_kernel.h"

namespace ssm {
namespace {

// Log-uniform steps, through the inverse of the transform.
Init inv_dt_init(double low, double high, bool exponential) {
  return Init::custom([=, log_low = std::log(low), log_high = std::log(high)](const Rng& rng, int64_t i) {
    const double log_dt = log_low + (log_high - log_low) * rng.uniform(static_cast<uint64_t>(i));
    const double dt = std::exp(log_dt);
    return exponential ? log_dt : dt + std::log(-std::expm1(-dt));
  });
}

// Every parts-th number from `real`, those between them 0.
Init real_parts(const Init& real, int64_t parts) {
  return Init::custom([=](const Rng& rng, int64_t i) { return i % parts == 0 ? real(rng, i / parts) : 0.0; });
}

}  // namespace

Fields LtiConfig::shared_fields() {
  const auto rates = [this] {
    return Fields{{"dt", &lr_dt, "of the step sizes"}, {"A", &lr_A, "of A, and of P"}, {"B", &lr_B, "of B"}};
  };
  return {{"d_state", &d_state, "states a channel, N"},
          {.name = "n_ssm",
           .target = &n_ssm,
           .help = "copies of A and B that channels share; null: each channel its own",
           .word = "null",
           .word_value = 0},
          {"dt_min", &dt_min, "smallest initial step size"},
          {"dt_max", &dt_max, "largest initial step size"},
          {"dt_transform", &dt_transform, "from the parameter to the step size: exp or softplus"},
          {.name = "lr",
           .target = Field::Nested(rates),
           .help = "peak learning rates of parameters that have their own; 0: the run's"}};
}

void LtiConfig::check_shared(int64_t e, bool paired) const {
  require(1 <= d_state && d_state <= 4096, "ssm_cfg: d_state is ", d_state, ", expected 1 to 4096");
  require(!paired || d_state % 2 == 0, "ssm_cfg: d_state is ", d_state,
          ", expected an even number: the modes of a complex A are pairs");
  require(n_ssm >= 0 && e % copies(e) == 0, "ssm_cfg: n_ssm is ", n_ssm,
          ", expected a divisor of the number of channels, ", e, ", or null");
  require(0 < dt_min && dt_min <= dt_max && std::isfinite(dt_max), "ssm_cfg: dt_min is ", dt_min, " and dt_max ",
          dt_max, ", expected 0 < dt_min <= dt_max");
  require(dt_transform == "exp" || dt_transform == "softplus", "ssm_cfg: dt_transform is \"", dt_transform,
          "\", expected exp or softplus");
  for (const auto& [name, rate] : {std::pair{"dt", lr_dt}, {"A", lr_A}, {"B", lr_B}})
    require(rate >= 0 && std::isfinite(rate), "ssm_cfg: lr.", name, " is ", rate, ", expected a number >= 0");
}

Lti::Lti(const Params& params, const LtiConfig& config, const LtiStart& start, int64_t e)
    : e_(e), parts_(start.real ? 1 : 2), modes_(config.d_state / parts_), state_dtype_(accumulator_of(params.dtype())) {
  const bool exponential = config.dt_transform == "exp";
  const int64_t copies = config.n_ssm > 0 ? config.n_ssm : e;
  const auto own = [](double lr) { return Flags{.no_decay = true, .keep_f32 = true, .lr = lr}; };
  const Flags f32{.keep_f32 = true};
  // -Re A is e^A_real, and starts at 1e-4 or more.
  const Init A_real = Init::custom(
      [decay = start.decay](const Rng& rng, int64_t i) { return std::log(std::max(1e-4, decay(rng, i))); });

  const Params kernel = params.sub("kernel");
  D_ = params.get("D", {1, e_}, Init::normal(1), f32);
  parameters_.C =
      kernel.get("C", {1, e_, modes_, parts_}, Init::normal(1 / std::sqrt(static_cast<double>(parts_))), f32);
  parameters_.inv_dt =
      kernel.get("inv_dt", {e_, 1}, inv_dt_init(config.dt_min, config.dt_max, exponential), own(config.lr_dt));
  parameters_.A_real = kernel.get("A_real", {copies, modes_}, A_real, own(config.lr_A));
  if (!start.real) parameters_.A_imag = kernel.get("A_imag", {copies, modes_}, start.frequency, own(config.lr_A));
  parameters_.B = kernel.get("B", {1, copies, modes_, parts_}, real_parts(start.B, parts_), own(config.lr_B));
  if (start.low_rank) parameters_.P = kernel.get("P", {1, copies, modes_, 2}, real_parts(start.P, 2), own(config.lr_A));
  parameters_.method = start.method;
  parameters_.step = exponential ? StepTransform::exp : StepTransform::softplus;
}

// Weights that have a gradient change between calls.
StateSpace Lti::system(const Ctx& ctx) const {
  if (ctx.tape || parameters_.A_real.grad) return discretize(ctx, parameters_);
  if (!kept_.z) kept_ = discretize(ctx, parameters_);
  return kept_;
}

// A call that carries a state has to step through its tokens anyway, for the state that is left: outputs come with it.
Var Lti::forward(const Ctx& ctx, const Var& x, const Var& z, const Seqs& seqs, State state) const {
  Var* const h = state.empty() ? nullptr : &state[0];
  const StateSpace s = system(ctx);
  const Var y = !h && seqs.longest >= kConvolveFrom  // (t, e)
                    ? fft_conv(ctx, x, ssm_kernel(ctx, s, seqs.longest), D_, seqs)
                    : diag_scan(ctx, s, x, D_, seqs, h);
  return z ? gate(ctx, y, z) : y;
}

StateSpec Lti::state() const { return {{"ssm", {parts_, modes_, e_}, state_dtype_}}; }

}  // namespace ssm
