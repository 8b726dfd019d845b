// S4D (Gu et al. 2022, "On the parameterization and initialization of diagonal state space models"): a diagonal state
// space model in every channel, complex or real, by zero-order hold or the bilinear rule.
#pragma once

#include "mixers/lti_mixer.h"

namespace ssm {

struct S4dConfig final : LtiConfig {
  std::string init = "diag-lin";
  std::string disc = "zoh";
  bool is_real = false;

  Fields fields() override;
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

}  // namespace ssm
