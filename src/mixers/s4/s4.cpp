// S4's settings, and how it starts. The layer itself is mixers/inner/lti.
#include "mixers/s4/s4.h"

#include "core/error.h"
#include "lti/hippo.h"

namespace ssm {

Fields S4Config::fields() {
  Fields all = shared_fields();
  all.push_back({"init", &init, "initial A and B: legs"});
  return all;
}

std::unique_ptr<InnerLayer> S4Config::build(const Params& params, int64_t e, int64_t) const {
  check_shared(e, true);
  require(init == "legs", "ssm_cfg: init is \"", init, "\", expected legs");
  const auto legs =
      std::make_shared<WhenAsked<Dplr>>([n = d_state] { return diagonal_plus_low_rank(Measure::legs, n); });
  // The half of the modes with Im < 0 comes first.
  const auto of_mode = [legs, modes = d_state / 2](auto number) {
    return Init::custom([=](const Rng&, int64_t i) { return number(legs->get(), static_cast<size_t>(i % modes)); });
  };
  return std::make_unique<Lti>(
      params, *this,
      LtiStart{.decay = Init::constant(0.5),
               .frequency = of_mode([](const Dplr& m, size_t k) { return -m.Lambda[k].imag(); }),
               .B = of_mode([](const Dplr& m, size_t k) { return m.B[k].real(); }),
               .P = of_mode([](const Dplr& m, size_t k) { return m.P[k].real(); }),
               .low_rank = true,
               .method = Discretization::bilinear},
      e);
}

}  // namespace ssm
