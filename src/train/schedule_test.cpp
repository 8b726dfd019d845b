// The learning rates against numbers worked out by hand.
#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "formats/test_files.h"

namespace ssm {
namespace {

ScheduleConfig schedule(const char* name) {
  return {.steps = 110, .lr = 1e-3, .min_lr = 2e-4, .warmup = 10, .schedule = name, .decay_fraction = 0.2};
}

TEST(Schedule, WarmUpIsTheSameForAll) {
  for (const char* name : {"constant", "linear", "cosine", "wsd"})
    for (int64_t step = 1; step <= 10; ++step)
      EXPECT_EQ(learning_rate(schedule(name), step), 1e-3 * (static_cast<double>(step) / 10)) << name << " " << step;
}

TEST(Schedule, Constant) {
  for (const int64_t step : {11, 60, 110, 5000}) EXPECT_EQ(learning_rate(schedule("constant"), step), 1e-3);
}

TEST(Schedule, Linear) {
  // 100 steps from 1e-3 to 2e-4: 8e-6 a step.
  EXPECT_DOUBLE_EQ(learning_rate(schedule("linear"), 11), 1e-3 - 8e-6);
  EXPECT_DOUBLE_EQ(learning_rate(schedule("linear"), 60), 6e-4);
  EXPECT_DOUBLE_EQ(learning_rate(schedule("linear"), 110), 2e-4);
  EXPECT_DOUBLE_EQ(learning_rate(schedule("linear"), 200), 2e-4);
}

TEST(Schedule, Cosine) {
  // A third of the way cos is 1/2: three quarters of the distance are left.
  ScheduleConfig config = schedule("cosine");
  config.steps = 100;  // 90 steps of decay
  EXPECT_DOUBLE_EQ(learning_rate(config, 40), 2e-4 + 0.75 * 8e-4);
  EXPECT_DOUBLE_EQ(learning_rate(config, 55), 6e-4);
  EXPECT_NEAR(learning_rate(config, 100), 2e-4, 1e-18);
  EXPECT_NEAR(learning_rate(config, 101), 2e-4, 1e-18);
}

TEST(Schedule, WarmUpStableDecay) {
  // The last fifth of 110 steps, 22, falls by 8e-4.
  EXPECT_EQ(learning_rate(schedule("wsd"), 88), 1e-3);
  EXPECT_DOUBLE_EQ(learning_rate(schedule("wsd"), 99), 6e-4);
  EXPECT_DOUBLE_EQ(learning_rate(schedule("wsd"), 110), 2e-4);
}

TEST(Schedule, NoWarmUpAndNothingButWarmUp) {
  ScheduleConfig config = schedule("cosine");
  config.warmup = 0;
  EXPECT_LT(learning_rate(config, 1), 1e-3);
  EXPECT_GT(learning_rate(config, 1), 0.99e-3);
  config.warmup = 500;  // longer than the run
  EXPECT_DOUBLE_EQ(learning_rate(config, 110), 1e-3 * 110 / 500);
}

TEST(Schedule, BadSettingsNameTheFlag) {
  const auto with = [](auto change) {
    ScheduleConfig config = schedule("cosine");
    change(config);
    return [config] { config.check(); };
  };
  EXPECT_NO_THROW(with([](auto&) {})());
  EXPECT_TRUE(fails_with("--steps 0", with([](auto& c) { c.steps = 0; })));
  EXPECT_TRUE(fails_with("--lr nan", with([](auto& c) { c.lr = NAN; })));
  EXPECT_TRUE(fails_with("--min-lr 0.1", with([](auto& c) { c.min_lr = 0.1; })));
  EXPECT_TRUE(fails_with("--warmup -1", with([](auto& c) { c.warmup = -1; })));
  EXPECT_TRUE(fails_with("--decay-fraction 1.5", with([](auto& c) { c.decay_fraction = 1.5; })));
  EXPECT_TRUE(fails_with("did you mean cosine", with([](auto& c) { c.schedule = "cosin"; })));
}

}  // namespace
}  // namespace ssm
