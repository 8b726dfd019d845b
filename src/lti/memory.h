// What a HiPPO state still knows: the state after a signal, and the past rebuilt from the state. The signal is constant
// over each sample. Numbers of equations are those of README.md.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lti/hippo.h"

namespace ssm {

// A memory of n numbers. With legt and fout the last `window` samples are kept; with legs a sample fades by e in each
// `window` samples, or, with a window of 0, time is scaled so that the whole past has equal weight (20).
struct Memory {
  Measure measure = Measure::legs;
  int64_t n = 0;
  double window = 0;  // samples
};

// The state (n) after `signal`. `between` is called now and then and may throw.
std::vector<double> remember(const Memory& memory, std::span<const double> signal,
                             const std::function<void()>& between);

// The last `count` of `samples` samples by (18), in their order, each at its middle.
std::vector<double> recall(const Memory& memory, const std::vector<double>& state, int64_t samples, int64_t count);

}  // namespace ssm
