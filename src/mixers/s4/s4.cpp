// S4's settings, and how it starts. The layer itself is mixers/lti_mixer.
#include "mixers/s4/s4.h"

#include <cmath>

#include "core/error.h"
#include "mixers/hippo.h"

namespace ssm {

Fields S4Config::fields() {
  Fields all = shared_fields();
  all.push_back({"init", &init, "initial A and B: legs"});
  return all;
}

std::unique_ptr<Mixer> S4Config::build(const Params& params, int64_t d_model, int64_t) const {
  check_shared(d_model, true);
  require(init == "legs", "ssm_cfg: init is \"", init, "\", expected legs");
  const int64_t modes = d_state / 2;
  const auto legs = std::make_shared<LazyLegs>(d_state);
  const auto of_mode = [=](auto value) {
    return Init::custom([=](const Rng&, int64_t i) { return value(legs->get(), static_cast<size_t>(i % modes)); });
  };
  return std::make_unique<LtiMixer>(
      params, *this,
      LtiStart{.decay = Init::constant(0.5),
               .frequency = of_mode([](const LegsModes& m, size_t k) { return m.frequency[k]; }),
               .B = of_mode([](const LegsModes& m, size_t k) { return std::sqrt(2.0) * m.p[k]; }),
               .P = of_mode([](const LegsModes& m, size_t k) { return m.p[k]; }),
               .low_rank = true,
               .method = Discretization::bilinear},
      d_model);
}

}  // namespace ssm
