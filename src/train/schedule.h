// The learning rate of every step: a linear warm-up to the peak, then one of four curves.
//
//   warm-up        lr * step / warmup                                         step <= warmup
//   constant       lr
//   linear         from lr to min_lr over the steps after the warm-up
//   cosine         the same, along half a cosine
//   wsd            lr, then linear to min_lr over the last decay_fraction of all steps (warm-up, stable, decay)
//
// A pure function of the settings and the step, so a resumed run needs nothing but its step number.
#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"

namespace ssm {

struct ScheduleConfig {
  int64_t steps = 1000;  // of the whole run: where the curves end
  double lr = 1e-3;
  double min_lr = 0;
  int64_t warmup = 100;
  // A run whose curve does not depend on `steps` can be extended later and is then the longer run, bit for bit.
  std::string schedule = "constant";
  double decay_fraction = 0.2;

  Fields fields();
  void check() const;  // throws Error naming the flag
};

// `step` counts from 1: the first update is not one of size 0. Past the last step the curve stays where it ended.
double learning_rate(const ScheduleConfig& config, int64_t step);

}  // namespace ssm
