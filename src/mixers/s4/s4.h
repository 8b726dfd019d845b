// S4 (Gu, Goel and Re 2021, "Efficiently modeling long sequences with structured state spaces"): an inner layer with a
// state space model in every channel whose A is diagonal minus rank one, which starts as HiPPO-LegS, by the bilinear
// rule. The block around it is mixers/s4_block.
#pragma once

#include "mixers/inner/lti.h"

namespace ssm {

struct S4Config final : LtiConfig {
  std::string init = "legs";

  Fields fields() override;
  std::unique_ptr<InnerLayer> build(const Params& params, int64_t e, int64_t d_model) const override;
};

}  // namespace ssm
