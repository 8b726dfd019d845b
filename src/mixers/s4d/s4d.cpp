// S4D's settings, and how its diagonal starts. The layer itself is mixers/lti_mixer.
#include "mixers/s4d/s4d.h"

#include <cmath>

#include "core/error.h"
#include "mixers/hippo.h"

namespace ssm {

Fields S4dConfig::fields() {
  Fields all = shared_fields();
  all.push_back({"init", &init, "initial A: diag-lin, -inv, -inv2, -quad, -real, -rand, -legs, or diag (inv and lin)"});
  all.push_back({"disc", &disc, "from the continuous system to the recurrence: zoh or bilinear"});
  all.push_back({"is_real", &is_real, "a real A, of d_state modes, instead of d_state / 2 pairs"});
  return all;
}

std::unique_ptr<Mixer> S4dConfig::build(const Params& params, int64_t d_model, int64_t) const {
  check_shared(d_model, !is_real);
  require(disc == "zoh" || disc == "bilinear", "ssm_cfg: disc is \"", disc, "\", expected zoh or bilinear");
  require(!is_real || init != "diag-legs",
          "ssm_cfg: init is diag-legs, whose B is of pairs; with is_real expected another");
  const int64_t modes = is_real ? d_state : d_state / 2;
  const auto legs = std::make_shared<LazyLegs>(d_state);
  const DiagonalInit diagonal = diagonal_init(init, d_state, copies(d_model), modes, legs);
  LtiStart start{.decay = diagonal.decay,
                 .frequency = diagonal.frequency,
                 .real = is_real,
                 .method = disc == "zoh" ? Discretization::zoh : Discretization::bilinear};
  if (diagonal.legs)
    start.B = Init::custom(
        [=](const Rng&, int64_t i) { return std::sqrt(2.0) * legs->get().p[static_cast<size_t>(i % modes)]; });
  return std::make_unique<LtiMixer>(params, *this, start, d_model);
}

}  // namespace ssm
