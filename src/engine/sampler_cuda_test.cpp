// The sampler on a GPU against the one on the host, and both against a sorted vocabulary. Cuts and draws are placed in
// the middle of a token's share, so that the rounding of sums decides nothing.
#include "engine/sampler_cuda.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "engine/sampler.h"

namespace ssm {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool skipped() {
  std::string why = "this program was built without CUDA";
  if constexpr (kHasCuda) {
    if (cuda::device_count() > 0) return false;
    why = cuda::why_no_device();
  }
  [&] { GTEST_SKIP() << why; }();
  return true;
}

struct Row {
  std::vector<float> logits;
  SamplerOptions options;
  double uniform = 0;
};

struct Found {
  std::vector<int64_t> ids;
  bool failed;
};

// All rows have the first one's vocabulary. Behind it are logits that would win, and rows begin `offset` elements after
// a boundary.
Found sample(const std::vector<Row>& rows, int64_t padding, int64_t offset, bool in_graph = false) {
  Found found{std::vector<int64_t>(rows.size(), -1), false};
  if constexpr (kHasCuda) {
    const Device gpu = Device::cuda();
    const auto count = static_cast<int64_t>(rows.size());
    const auto vocab = static_cast<int64_t>(rows[0].logits.size());
    const Tensor logits = Tensor::empty({count, vocab + padding + offset}, DType::f32);
    std::vector<float> temperature, top_p;
    std::vector<int64_t> top_k;
    std::vector<double> uniform;
    bool all_greedy = true;
    for (int64_t i = 0; i < count; ++i) {
      const Row& row = rows[static_cast<size_t>(i)];
      float* to = logits.matrix<float>()[i];
      std::fill_n(to, vocab + padding + offset, 1000.0f);
      std::copy(row.logits.begin(), row.logits.end(), to + offset);
      temperature.push_back(static_cast<float>(row.options.temperature));
      top_p.push_back(static_cast<float>(row.options.top_p));
      top_k.push_back(row.options.top_k);
      uniform.push_back(row.uniform);
      all_greedy = all_greedy && row.options.temperature == 0;
    }
    const Tensor there = logits.on(gpu);
    const cuda::SampleRows args{.logits = there.columns(offset, vocab + padding + offset),
                                .vocab = vocab,
                                .temperature = Tensor::of(temperature).on(gpu),
                                .top_p = Tensor::of(top_p).on(gpu),
                                .top_k = Tensor::of(top_k).on(gpu),
                                .uniform = Tensor::of(uniform).on(gpu),
                                .ids = Tensor::of(found.ids).on(gpu),
                                .failed = Tensor::zeros({1}, DType::i32, gpu),
                                .all_greedy = all_greedy};
    const auto run = [&] { cuda::sample(args, cuda::stream(gpu)); };
    if (in_graph) {
      cuda::Graph(gpu, run).launch();
    } else {
      run();
    }
    const Tensor ids = args.ids.on(Device::cpu());
    found.ids.assign(ids.data<int64_t>(), ids.data<int64_t>() + count);
    found.failed = args.failed.on(Device::cpu()).item<int32_t>() != 0;
  }
  return found;
}

std::vector<float> random_logits(uint64_t seed, int64_t vocab, bool ties) {
  const Rng rng(seed, "logits");
  std::vector<float> logits;
  for (int64_t id = 0; id < vocab; ++id) {
    const double normal = 3 * rng.normal(static_cast<uint64_t>(id));
    logits.push_back(static_cast<float>(ties ? std::round(4 * normal) / 4 : normal));
  }
  return logits;
}

// Sets the row's uniform number so that the answer is clear, and top-p, when it cuts, so that what it keeps is. Returns
// the id.
int64_t place(Row& row, double uniform) {
  const std::vector<float>& logits = row.logits;
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto logit = [&](int64_t id) { return static_cast<double>(logits[static_cast<size_t>(id)]); };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logit(a) > logit(b); });
  if (row.options.temperature == 0) return order[0];
  const double most = logit(order[0]);
  if (row.options.top_k > 0 && row.options.top_k < static_cast<int64_t>(order.size()))
    order.resize(static_cast<size_t>(row.options.top_k));
  const auto weight = [&](int64_t id) { return std::exp((logit(id) - most) / row.options.temperature); };
  double all = 0, kept = 0;
  for (const int64_t id : order) all += weight(id);
  if (row.options.top_p < 1) {
    size_t size = 0;
    while (size < order.size() && (kept += weight(order[size++])) < row.options.top_p * all) {
    }
    order.resize(size);
    row.options.top_p = static_cast<float>((kept - weight(order.back()) / 2) / all);
  } else {
    kept = all;
  }
  std::sort(order.begin(), order.end());
  double sum = 0;
  size_t at = 0;
  // The first at or after the given number whose share is far above the rounding of the sums.
  while (at + 1 < order.size() && (sum + weight(order[at]) <= uniform * kept || weight(order[at]) < 1e-6 * kept))
    sum += weight(order[at++]);
  row.uniform = (sum + weight(order[at]) / 2) / kept;
  return order[at];
}

void check(const std::vector<SamplerOptions>& options, int64_t vocab, int64_t padding, int64_t offset, bool in_graph) {
  for (const bool ties : {false, true}) {
    std::vector<Row> rows;
    std::vector<int64_t> expected;
    for (size_t i = 0; i < 3 * options.size(); ++i) {
      rows.push_back({random_logits(i, vocab, ties), options[i % options.size()]});
      expected.push_back(place(rows.back(), Rng(7, "place").uniform(i)));
    }
    const Found found = sample(rows, padding, offset, in_graph);
    EXPECT_FALSE(found.failed);
    for (size_t i = 0; i < rows.size(); ++i) {
      const SamplerOptions& used = rows[i].options;
      const std::string what = text("row ", i, " of ", vocab, " ids, temperature ", used.temperature, ", top_k ",
                                    used.top_k, ", top_p ", used.top_p, ", ties ", ties);
      ASSERT_EQ(Sampler(used).choose(std::span<const float>(rows[i].logits), {}, rows[i].uniform), expected[i]) << what;
      EXPECT_EQ(found.ids[i], expected[i]) << what;
    }
  }
}

const std::vector<SamplerOptions> kDrawing = {{},
                                              {.temperature = 0.7, .top_k = 40},
                                              {.temperature = 0},
                                              {.top_p = 0.9},
                                              {.temperature = 2, .top_k = 100, .top_p = 0.8},
                                              {.top_k = 1},
                                              {.top_p = 0},
                                              {.temperature = 1e-9},
                                              {.top_k = 5000, .top_p = 0.5},
                                              {.temperature = 0.2, .top_p = 0.3}};

TEST(SamplerCuda, DrawsWhatTheHostDraws) {
  if (skipped()) return;
  for (const int64_t vocab : {1, 2, 31, 1025, 5003}) check(kDrawing, vocab, 0, 0, false);
  check(kDrawing, 50277, 3, 0, false);
  check(kDrawing, 50277, 3, 1, false);
  check({kDrawing[0], kDrawing[4]}, 256001, 7, 0, false);
}

TEST(SamplerCuda, GreedyTakesTheFirstOfTheLikeliest) {
  if (skipped()) return;
  for (const int64_t vocab : {1, 2, 31, 1025, 4096, 4097, 50277}) {
    check({{.temperature = 0}}, vocab, 3, 0, false);
    check({{.temperature = 0}}, vocab, 3, 1, false);
  }
  Row zeros{{-1, -0.0f, 0, 0.0f}, {.temperature = 0}};
  EXPECT_EQ(sample({zeros}, 0, 0).ids[0], 1);
  zeros.options = {.top_k = 1};
  EXPECT_EQ(sample({zeros}, 0, 0).ids[0], 1);
}

TEST(SamplerCuda, TheSameFromAGraph) {
  if (skipped()) return;
  check({{.temperature = 0}}, 50277, 3, 0, false);
  check({{.temperature = 0}}, 50277, 3, 0, true);
  check(kDrawing, 5003, 1, 0, true);
}

TEST(SamplerCuda, EndsOfTheRangeDrawWhatCanCome) {
  if (skipped()) return;
  const auto ninf = static_cast<float>(-kInfinity);
  for (const double uniform : {0.0, 0.5, 1 - 0x1p-53})
    EXPECT_EQ(sample({{{ninf, ninf, 2, ninf}, {}, uniform}}, 2, 0).ids[0], 2) << uniform;
  const std::vector<float> logits = random_logits(1, 3000, false);
  for (const SamplerOptions& options : kDrawing)
    for (const double uniform : {0.0, 1 - 0x1p-53})
      EXPECT_EQ(sample({{logits, options, uniform}}, 0, 0).ids[0],
                Sampler(options).choose(std::span<const float>(logits), {}, uniform));
}

TEST(SamplerCuda, DamagedLogitsAreToldAndNothingElseIs) {
  if (skipped()) return;
  const auto infinity = static_cast<float>(kInfinity);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const SamplerOptions options{.temperature = temperature};
    const std::vector<float> good = random_logits(3, 9000, false);
    EXPECT_FALSE(sample({{good, options}, {good, options}}, 4, 0).failed);
    for (const float wrong : {nan, -nan, infinity})
      for (const size_t place : {size_t{0}, size_t{8191}, good.size() - 1}) {
        std::vector<float> bad = good;
        bad[place] = wrong;
        EXPECT_TRUE(sample({{good, options}, {bad, options}}, 4, 0).failed) << wrong << " at " << place;
      }
    EXPECT_TRUE(sample({{std::vector<float>(5, -infinity), options}}, 4, 0).failed);
    EXPECT_FALSE(sample({{{-infinity, -infinity, 1, -infinity}, options}}, 4, 0).failed);
  }
}

}  // namespace
}  // namespace ssm
