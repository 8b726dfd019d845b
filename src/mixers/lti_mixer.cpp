// S4's and S4D's parameters, their initial values, and the forward pass.
#include "mixers/lti_mixer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/activation/activation.h"
#include "ops/diag_scan/diag_scan.h"
#include "ops/fft_conv/fft_conv.h"
#include "ops/linear/linear.h"
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

// Whether every sequence starts from nothing. A state that wants a gradient is something even where it is 0.
bool starts_at_zero(const Var* state, const Seqs& seqs) {
  if (!state) return true;
  if (state->grad) return false;
  const auto is_zero = [](const auto& numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [](auto x) { return x == 0; });
  };
  return std::all_of(seqs.slots.begin(), seqs.slots.end(), [&](int64_t slot) {
    const Tensor row = state->value.rows(slot, slot + 1);
    return row.dtype() == DType::f64 ? is_zero(row.span<double>()) : is_zero(row.span<float>());
  });
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

void LtiConfig::check_shared(int64_t d_model, bool paired) const {
  require(1 <= d_state && d_state <= 4096, "ssm_cfg: d_state is ", d_state, ", expected 1 to 4096");
  require(!paired || d_state % 2 == 0, "ssm_cfg: d_state is ", d_state,
          ", expected an even number: the modes of a complex A are pairs");
  require(n_ssm >= 0 && d_model % copies(d_model) == 0, "ssm_cfg: n_ssm is ", n_ssm,
          ", expected a divisor of d_model, ", d_model, ", or null");
  require(0 < dt_min && dt_min <= dt_max && std::isfinite(dt_max), "ssm_cfg: dt_min is ", dt_min, " and dt_max ",
          dt_max, ", expected 0 < dt_min <= dt_max");
  require(dt_transform == "exp" || dt_transform == "softplus", "ssm_cfg: dt_transform is \"", dt_transform,
          "\", expected exp or softplus");
  for (const auto& [name, rate] : {std::pair{"dt", lr_dt}, {"A", lr_A}, {"B", lr_B}})
    require(rate >= 0 && std::isfinite(rate), "ssm_cfg: lr.", name, " is ", rate, ", expected a number >= 0");
}

LtiMixer::LtiMixer(const Params& params, const LtiConfig& config, const LtiStart& start, int64_t d_model)
    : d_(d_model),
      parts_(start.real ? 1 : 2),
      modes_(config.d_state / parts_),
      state_dtype_(accumulator_of(params.dtype())) {
  const bool exponential = config.dt_transform == "exp";
  const int64_t copies = config.n_ssm > 0 ? config.n_ssm : d_model;
  const auto own = [](double lr) { return Flags{.no_decay = true, .keep_f32 = true, .lr = lr}; };
  const Flags f32{.keep_f32 = true};
  // -Re A is e^A_real, and starts at 1e-4 or more.
  const Init A_real = Init::custom(
      [decay = start.decay](const Rng& rng, int64_t i) { return std::log(std::max(1e-4, decay(rng, i))); });

  const Params layer = params.sub("layer"), kernel = layer.sub("kernel");
  D_ = layer.get("D", {1, d_}, Init::normal(1), f32);
  parameters_.C =
      kernel.get("C", {1, d_, modes_, parts_}, Init::normal(1 / std::sqrt(static_cast<double>(parts_))), f32);
  parameters_.inv_dt =
      kernel.get("inv_dt", {d_, 1}, inv_dt_init(config.dt_min, config.dt_max, exponential), own(config.lr_dt));
  parameters_.A_real = kernel.get("A_real", {copies, modes_}, A_real, own(config.lr_A));
  if (!start.real) parameters_.A_imag = kernel.get("A_imag", {copies, modes_}, start.frequency, own(config.lr_A));
  parameters_.B = kernel.get("B", {1, copies, modes_, parts_}, real_parts(start.B, parts_), own(config.lr_B));
  if (start.low_rank) parameters_.P = kernel.get("P", {1, copies, modes_, 2}, real_parts(start.P, 2), own(config.lr_A));
  parameters_.method = start.method;
  parameters_.step = exponential ? StepTransform::exp : StepTransform::softplus;
  const Params output = params.sub("output_linear").sub("0");
  output_ = output.get("weight", {2 * d_, d_}, Init::fan_in(d_));
  output_bias_ = output.get("bias", {2 * d_}, Init::fan_in(d_), {.no_decay = true, .keep_f32 = true});
}

// Weights that have a gradient change between calls.
StateSpace LtiMixer::system(const Ctx& ctx) const {
  if (ctx.tape || parameters_.A_real.grad) return discretize(ctx, parameters_);
  if (!kept_.z) kept_ = discretize(ctx, parameters_);
  return kept_;
}

Var LtiMixer::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  Var* const x = state.empty() ? nullptr : &state[0];
  const StateSpace s = system(ctx);
  Var y;  // (t, d)
  if (seqs.longest >= kConvolveFrom && starts_at_zero(x, seqs)) {
    y = fft_conv(ctx, u, ssm_kernel(ctx, s, seqs.longest), D_, seqs);
    if (x) diag_scan_state(ctx, s, u, seqs, x);
  } else {
    y = diag_scan(ctx, s, u, D_, seqs, x);
  }
  return glu(ctx, linear(ctx, gelu(ctx, y), output_, output_bias_));  // (t, d)
}

StateSpec LtiMixer::state() const { return {{"ssm", {parts_, modes_, d_}, state_dtype_}}; }

}  // namespace ssm
