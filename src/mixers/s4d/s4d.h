// S4D (Gu et al. 2022, "On the parameterization and initialization of diagonal state space models"): an inner layer
// with a diagonal state space model in every channel, complex or real, by zero-order hold or the bilinear rule. The
// block around it is mixers/s4_block.
#pragma once

#include "mixers/inner/lti.h"

namespace ssm {

struct S4dConfig final : LtiConfig {
  std::string init = "diag-lin";
  std::string disc = "zoh";
  bool is_real = false;

  Fields fields() override;
  std::unique_ptr<InnerLayer> build(const Params& params, int64_t e, int64_t d_model) const override;
};

// diag-lin, -inv, -inv2, -quad, -real, -legs; diag-rand; and diag: half of the copies inv, the others lin.
std::vector<std::string> s4d_inits();

}  // namespace ssm
