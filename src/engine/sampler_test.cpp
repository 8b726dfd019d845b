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

int64_t sample(const std::vector<double>& logits, const SamplerOptions& options, const std::vector<SeenId>& seen,
               double uniform) {
  const std::vector<float> narrow(logits.begin(), logits.end());
  Sampler f64(options), f32(options);
  const int64_t id = f64.choose(std::span<const double>(logits), seen, uniform);
  EXPECT_EQ(f32.choose(std::span<const float>(narrow), seen, uniform), id) << "f32 and f64 differ at " << uniform;
  return id;
}

// Every id that can come: uniform numbers over the whole range, both ends included.
std::set<int64_t> possible(const std::vector<double>& logits, const SamplerOptions& options,
                           const std::vector<SeenId>& seen = {}) {
  std::set<int64_t> ids = {sample(logits, options, seen, 0), sample(logits, options, seen, 1 - 0x1p-53)};
  for (int i = 0; i < 1000; ++i) ids.insert(sample(logits, options, seen, (i + 0.5) / 1000));
  return ids;
}

double chi_square(const std::vector<double>& expected, const std::vector<double>& logits,
                  const SamplerOptions& options) {
  constexpr int kDraws = 20000;
  const Rng rng(11, "sample");
  Sampler sampler(options);
  std::vector<double> counts(expected.size());
  for (int i = 0; i < kDraws; ++i)
    ++counts[static_cast<size_t>(
        sampler.choose(std::span<const double>(logits), {}, rng.uniform(static_cast<uint64_t>(i))))];
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
  const std::vector<SeenId> seen = {{.id = 0}, {.id = 2, .written = 5}};  // how often does not matter
  EXPECT_EQ(sample(std::vector<double>{3, 2, 1}, {.temperature = 0, .repetition_penalty = 2}, seen, 0), 1);
  EXPECT_EQ(sample(std::vector<double>{-1, -1.5, -1}, {.temperature = 0, .repetition_penalty = 2}, seen, 0), 1);
  EXPECT_EQ(sample(std::vector<double>{3, 2, 1}, {.temperature = 0, .repetition_penalty = 1.4}, seen, 0), 0);
}

TEST(Sampler, FrequencyAndPresencePenaltiesCountWhatWasWritten) {
  const std::vector<SeenId> seen = {{.id = 0, .written = 3}, {.id = 1, .written = 1}, {.id = 2}};
  const std::vector<double> logits = {3.0, 2.5, 2.0, 1.0};
  const auto greedy = [&](double frequency, double presence) {
    return sample(logits, {.temperature = 0, .frequency_penalty = frequency, .presence_penalty = presence}, seen, 0);
  };
  EXPECT_EQ(greedy(0, 0), 0);
  EXPECT_EQ(greedy(0.2, 0), 0);    // 2.4 2.3 2.0
  EXPECT_EQ(greedy(0.3, 0), 1);    // 2.1 2.2 2.0
  EXPECT_EQ(greedy(0.6, 0), 2);    // 1.2 1.9 2.0
  EXPECT_EQ(greedy(0, 1.1), 2);    // 1.9 1.4 2.0: what was only read keeps its logit
  EXPECT_EQ(greedy(0, 0.9), 0);    // 2.1 1.6 2.0
  EXPECT_EQ(greedy(-1, 0), 0);     // 6.0 3.5 2.0: a negative one invites
  EXPECT_EQ(greedy(0.2, 0.5), 2);  // 1.9 1.8 2.0
}

// The cuts of a large vocabulary are found without sorting it; here all of it is sorted. Ties are many: logits are
// rounded to quarters in every second case.
TEST(Sampler, CutsOfALargeVocabularyAreThoseOfASortedOne) {
  const Rng rng(3, "logits");
  for (const bool ties : {false, true})
    for (const SamplerOptions& options :
         {SamplerOptions{.top_p = 0.1}, SamplerOptions{.top_p = 0.9}, SamplerOptions{.top_p = 0.999},
          SamplerOptions{.top_k = 1}, SamplerOptions{.top_k = 700}, SamplerOptions{.min_p = 0.01},
          SamplerOptions{.temperature = 2, .top_k = 100, .top_p = 0.8, .min_p = 0.05}}) {
      std::vector<float> logits;
      for (uint64_t id = 0; id < 5000; ++id)
        logits.push_back(static_cast<float>(ties ? std::round(12 * rng.normal(id)) / 4 : 3 * rng.normal(id)));
      std::vector<int64_t> order(logits.size());
      std::iota(order.begin(), order.end(), int64_t{0});
      const auto logit = [&](int64_t id) { return static_cast<double>(logits[static_cast<size_t>(id)]); };
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logit(a) > logit(b); });
      EXPECT_EQ(likeliest(std::span<const float>(logits), 50), std::vector<int64_t>(order.begin(), order.begin() + 50));
      if (options.top_k > 0) order.resize(static_cast<size_t>(options.top_k));
      const double most = logit(order[0]);
      const auto weight = [&](int64_t id) { return std::exp((logit(id) - most) / options.temperature); };
      double all = 0, kept = 0;
      for (const int64_t id : order) all += weight(id);
      size_t size = 0;
      while (size < order.size() && kept < options.top_p * all - 1e-9) kept += weight(order[size++]);
      while (weight(order[size - 1]) < options.min_p) kept -= weight(order[--size]);
      std::sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(size));  // draws go by id
      Sampler sampler(options);
      for (int i = 0; i < 200; ++i) {
        const double uniform = (i + 0.5) / 200;
        double sum = 0;
        size_t at = 0;
        while (at + 1 < size && (sum += weight(order[at])) <= uniform * kept) ++at;
        ASSERT_EQ(sampler.choose(std::span<const float>(logits), {}, uniform), order[at])
            << "top_k " << options.top_k << ", top_p " << options.top_p << ", min_p " << options.min_p << ", ties "
            << ties << ", " << size << " kept";
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
        SamplerOptions{.top_p = 1.5}, SamplerOptions{.min_p = -0.1}, SamplerOptions{.repetition_penalty = 0},
        SamplerOptions{.frequency_penalty = nan}, SamplerOptions{.presence_penalty = 101}})
    EXPECT_THROW(wrong.check(), Error);
}

TEST(Sampler, LogSumExpGivesTheModelsProbabilities) {
  const auto logits = logits_of(kProbabilities);
  const std::vector<float> narrow(logits.begin(), logits.end());
  for (size_t id = 0; id < kProbabilities.size(); ++id) {
    EXPECT_NEAR(logits[id] - log_sum_exp(std::span<const double>(logits)), std::log(kProbabilities[id]), 1e-12);
    EXPECT_NEAR(logits[id] - log_sum_exp(std::span<const float>(narrow)), std::log(kProbabilities[id]), 1e-6);
  }
  const Rng rng(9, "logits");
  std::vector<float> many;
  double sum = 0;
  for (uint64_t id = 0; id < 130001; ++id) {
    many.push_back(static_cast<float>(4 * rng.normal(id)));
    sum += std::exp(static_cast<double>(many.back()));
  }
  EXPECT_NEAR(log_sum_exp(std::span<const float>(many)), std::log(sum), 1e-6);
}

TEST(Sampler, LikeliestAreInOrder) {
  const std::vector<double> logits = {1, 7, 3, 7, -2};
  const auto first = [&](int64_t k) { return likeliest(std::span<const double>(logits), k); };
  EXPECT_EQ(first(0), (std::vector<int64_t>{}));
  EXPECT_EQ(first(1), (std::vector<int64_t>{1}));
  EXPECT_EQ(first(3), (std::vector<int64_t>{1, 3, 2}));
  EXPECT_EQ(first(99), (std::vector<int64_t>{1, 3, 2, 0, 4}));
}

}  // namespace
}  // namespace ssm
