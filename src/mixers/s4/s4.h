// S4 (Gu, Goel and Re 2021, "Efficiently modeling long sequences with structured state spaces"): a state space model
// in every channel whose A is diagonal minus rank one, which starts as HiPPO-LegS, by the bilinear rule.
#pragma once

#include "mixers/lti_mixer.h"

namespace ssm {

struct S4Config final : LtiConfig {
  std::string init = "legs";

  Fields fields() override;
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

}  // namespace ssm
