// The curves, in double.
#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "core/error.h"

namespace ssm {
namespace {

const std::vector<std::string> kSchedules = {"constant", "linear", "cosine", "wsd"};

// The way from `begin` to `end` that is behind `step`: 0 to 1.
double progress(int64_t step, int64_t begin, int64_t end) {
  if (step >= end) return 1;
  return step <= begin ? 0 : static_cast<double>(step - begin) / static_cast<double>(end - begin);
}

}  // namespace

Fields ScheduleConfig::fields() {
  return {{"steps", &steps, "updates in all, also with --resume"},
          {"lr", &lr, "peak learning rate"},
          {"min_lr", &min_lr, "learning rate at the end of linear, cosine and wsd"},
          {"warmup", &warmup, "steps of linear warm-up"},
          {"schedule", &schedule,
           "constant (such a run can be extended later), or, down to min_lr by the last step: linear, cosine, wsd"},
          {"decay_fraction", &decay_fraction, "wsd: the last part of the steps, in which the rate falls"}};
}

void ScheduleConfig::check() const {
  require(steps >= 1, "--steps ", steps, ": expected at least 1");
  require(std::isfinite(lr) && lr > 0, "--lr ", lr, ": expected more than 0");
  require(min_lr >= 0 && min_lr <= lr, "--min-lr ", min_lr, ": expected 0 to --lr (", lr, ")");
  require(warmup >= 0, "--warmup ", warmup, ": expected at least 0");
  require(decay_fraction >= 0 && decay_fraction <= 1, "--decay-fraction ", decay_fraction, ": expected 0 to 1");
  if (std::find(kSchedules.begin(), kSchedules.end(), schedule) != kSchedules.end()) return;
  const std::string near = nearest(schedule, kSchedules);
  throw Error("--schedule ", schedule, ": expected constant, linear, cosine or wsd",
              near.empty() ? "" : "; did you mean " + near + "?");
}

double learning_rate(const ScheduleConfig& config, int64_t step) {
  if (step <= config.warmup) return config.lr * (static_cast<double>(step) / static_cast<double>(config.warmup));
  if (config.schedule == "constant") return config.lr;
  const auto falling = static_cast<int64_t>(std::llround(config.decay_fraction * static_cast<double>(config.steps)));
  const int64_t begin = config.schedule == "wsd" ? std::max(config.warmup, config.steps - falling) : config.warmup;
  const double way = progress(step, begin, config.steps);
  // What is left of the distance between the two rates.
  const double rest = config.schedule == "cosine" ? (1 + std::cos(std::numbers::pi * way)) / 2 : 1 - way;
  return config.min_lr + (config.lr - config.min_lr) * rest;
}

}  // namespace ssm
