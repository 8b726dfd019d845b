// The sampler: what each step keeps, the distribution of what is drawn, and refusal of damaged logits.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/rng.h"

namespace ssm {
namespace {

std::vector<double> logits_of(const std::vector<double>& probabilities) {
  std::vector<double> logits;
  for (const double p : probabilities) logits.push_back(std::log(p) + 3);  // a constant changes nothing
  return logits;
}

// Every id that can come: uniform numbers over the whole range, both ends included.
std::set<int64_t> possible(const std::vector<double>& logits, const SamplerOptions& options,
                           const std::vector<int64_t>& seen = {}) {
  std::set<int64_t> ids = {sample(logits, options, seen, 0), sample(logits, options, seen, 1 - 0x1p-53)};
  for (int i = 0; i < 1000; ++i) ids.insert(sample(logits, options, seen, (i + 0.5) / 1000));
  return ids;
}

double chi_square(const std::vector<double>& expected, const std::vector<double>& logits,
                  const SamplerOptions& options) {
  constexpr int kDraws = 20000;
  const Rng rng(11, "sample");
  std::vector<double> counts(expected.size());
  for (int i = 0; i < kDraws; ++i)
    ++counts[static_cast<size_t>(sample(logits, options, {}, rng.uniform(static_cast<uint64_t>(i))))];
  double sum = 0;
  for (size_t id = 0; id < expected.size(); ++id) {
    const double mean = kDraws * expected[id];
    sum += (counts[id] - mean) * (counts[id] - mean) / mean;
  }
  return sum;
}

const std::vector<double> kProbabilities = {0.05, 0.4, 0.1, 0.25, 0.2};
constexpr double kUnlikely = 18.5;  // chi-square of 4 degrees of freedom passes this once in 1000

TEST(Sampler, DrawsTheSoftmax) { EXPECT_LT(chi_square(kProbabilities, logits_of(kProbabilities), {}), kUnlikely); }

TEST(Sampler, TemperatureRaisesProbabilitiesToAPower) {
  for (const double temperature : {0.5, 2.0}) {
    std::vector<double> expected;
    for (const double p : kProbabilities) expected.push_back(std::pow(p, 1 / temperature));
    const double sum = std::accumulate(expected.begin(), expected.end(), 0.0);
    for (double& p : expected) p /= sum;
    EXPECT_LT(chi_square(expected, logits_of(kProbabilities), {.temperature = temperature}), kUnlikely) << temperature;
    EXPECT_GT(chi_square(expected, logits_of(kProbabilities), {}), 1000) << "the test cannot tell temperatures apart";
  }
}

TEST(Sampler, GreedyTakesTheFirstOfTheLikeliest) {
  const std::vector<double> logits = {1, 5, -2, 5};
  EXPECT_EQ(possible(logits, {.temperature = 0}), (std::set<int64_t>{1}));
  EXPECT_EQ(possible(logits, {.temperature = 1e-9}), (std::set<int64_t>{1, 3}));  // equals share, whatever else
}

TEST(Sampler, TopK) {
  const auto logits = logits_of(kProbabilities);
  EXPECT_EQ(possible(logits, {.top_k = 1}), (std::set<int64_t>{1}));
  EXPECT_EQ(possible(logits, {.top_k = 3}), (std::set<int64_t>{1, 3, 4}));
  EXPECT_EQ(possible(logits, {.top_k = 5}).size(), 5u);
  EXPECT_EQ(possible(logits, {.top_k = 500}).size(), 5u);
  EXPECT_EQ(possible({2, 2, 2, 2}, {.top_k = 2}), (std::set<int64_t>{0, 1}));
}

TEST(Sampler, TopPKeepsTheTokenThatReachesTheSum) {
  const auto logits = logits_of(kProbabilities);
  EXPECT_EQ(possible(logits, {.top_p = 0.0}), (std::set<int64_t>{1}));
  EXPECT_EQ(possible(logits, {.top_p = 0.39}), (std::set<int64_t>{1}));
  EXPECT_EQ(possible(logits, {.top_p = 0.41}), (std::set<int64_t>{1, 3}));
  EXPECT_EQ(possible(logits, {.top_p = 0.84}), (std::set<int64_t>{1, 3, 4}));
  EXPECT_EQ(possible(logits, {.top_p = 1.0}).size(), 5u);
  // Of what top-k left: 0.4 of 0.65 is 0.62.
  EXPECT_EQ(possible(logits, {.top_k = 2, .top_p = 0.6}), (std::set<int64_t>{1}));
}

TEST(Sampler, MinPIsAFractionOfTheLikeliest) {
  const auto logits = logits_of(kProbabilities);
  EXPECT_EQ(possible(logits, {.min_p = 0.49}), (std::set<int64_t>{1, 3, 4}));
  EXPECT_EQ(possible(logits, {.min_p = 0.51}), (std::set<int64_t>{1, 3}));
  EXPECT_EQ(possible(logits, {.min_p = 1.0}), (std::set<int64_t>{1}));
}

TEST(Sampler, RepetitionPenaltyMakesSeenIdsUnlikelierWhateverTheirSign) {
  const std::vector<int64_t> seen = {0, 2};
  EXPECT_EQ(sample(std::vector<double>{3, 2, 1}, {.temperature = 0, .repetition_penalty = 2}, seen, 0), 1);
  EXPECT_EQ(sample(std::vector<double>{-1, -1.5, -1}, {.temperature = 0, .repetition_penalty = 2}, seen, 0), 1);
  EXPECT_EQ(sample(std::vector<double>{3, 2, 1}, {.temperature = 0, .repetition_penalty = 1.4}, seen, 0), 0);
}

// The nucleus of a large vocabulary is found without sorting all of it; here all of it is sorted.
TEST(Sampler, NucleusOfALargeVocabulary) {
  const Rng rng(3, "logits");
  std::vector<double> logits;
  for (uint64_t id = 0; id < 5000; ++id) logits.push_back(3 * rng.normal(id));
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto logit = [&](int64_t id) { return logits[static_cast<size_t>(id)]; };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logit(a) > logit(b); });
  double all = 0;
  for (const double l : logits) all += std::exp(l);
  for (const double top_p : {0.1, 0.5, 0.9, 0.99}) {
    double kept = 0;
    size_t size = 0;
    while (kept < top_p * all) kept += std::exp(logit(order[size++]));
    for (int i = 0; i < 50; ++i) {
      const double uniform = (i + 0.5) / 50;
      double sum = 0;
      size_t at = 0;
      while ((sum += std::exp(logit(order[at]))) <= uniform * kept) ++at;
      ASSERT_EQ(sample(logits, {.top_p = top_p}, {}, uniform), order[at]) << top_p << " of " << size;
    }
  }
}

TEST(Sampler, DamagedLogitsAreErrors) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    EXPECT_THROW(sample(std::vector<double>{1, nan, 2}, {.temperature = temperature}, {}, 0.5), Error);
    EXPECT_THROW(sample(std::vector<double>{1, kInfinity}, {.temperature = temperature}, {}, 0.5), Error);
    EXPECT_THROW(sample(std::vector<double>{-kInfinity, -kInfinity}, {.temperature = temperature}, {}, 0.5), Error);
    EXPECT_EQ(possible({-kInfinity, 0, -kInfinity}, {.temperature = temperature}), (std::set<int64_t>{1}));
  }
}

TEST(Sampler, OptionsOutOfRangeAreErrors) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NO_THROW(SamplerOptions().check());
  for (const SamplerOptions& wrong :
       {SamplerOptions{.temperature = -1}, SamplerOptions{.temperature = nan}, SamplerOptions{.top_k = -1},
        SamplerOptions{.top_p = 1.5}, SamplerOptions{.min_p = -0.1}, SamplerOptions{.repetition_penalty = 0}})
    EXPECT_THROW(wrong.check(), Error);
}

TEST(Sampler, LogProbabilityIsTheModels) {
  const auto logits = logits_of(kProbabilities);
  for (size_t id = 0; id < kProbabilities.size(); ++id)
    EXPECT_NEAR(log_probability(logits, static_cast<int64_t>(id)), std::log(kProbabilities[id]), 1e-12);
}

}  // namespace
}  // namespace ssm
