// How the bias of the step size starts, in every mixer that has one: softplus(bias) is log-uniform in [dt_min, dt_max],
// with a floor, as the reference implementation draws it.
#pragma once

#include "core/params.h"

namespace ssm {

Init dt_bias_init(double dt_min, double dt_max, double floor);

}  // namespace ssm
