#include "mixers/dt_bias.h"

#include <algorithm>
#include <cmath>

namespace ssm {

Init dt_bias_init(double dt_min, double dt_max, double floor) {
  const double low = std::log(dt_min), high = std::log(dt_max);
  return Init::custom([=](const Rng& rng, int64_t i) {
    const double dt = std::max(floor, std::exp(low + (high - low) * rng.uniform(static_cast<uint64_t>(i))));
    return dt + std::log(-std::expm1(-dt));  // inverts softplus
  });
}

}  // namespace ssm
