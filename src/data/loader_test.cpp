// Every window once an epoch, a batch a function of (seed, step) alone, every evaluation target once.
#include "data/loader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <set>

#include "core/error.h"
#include "core/rng.h"

namespace ssm {
namespace {

// Ids that tell their own position.
Tokens counting(int64_t count) {
  std::vector<int64_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i);
  return Tokens::from_ids(ids, std::max<int64_t>(count, 1), "counting");
}

std::vector<int64_t> values(const Tensor& tensor) {
  const auto span = tensor.span<int64_t>();
  return {span.begin(), span.end()};
}

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Loaders, EachEpochShowsEachWindowOnce) {
  for (const int64_t count : {2, 3, 7, 8, 9, 100, 101, 997})
    for (const int64_t length : {1, 2, 3, 7, 32})
      for (const int64_t begin : {0, 5}) {
        if (count <= length) continue;
        const TokenRange range{begin, begin + count};
        const Loader loader(counting(begin + count + 5), range, {.batch = 1, .length = length, .seed = 3});
        const int64_t windows = loader.windows();
        EXPECT_GE(windows, 1);
        EXPECT_GE((windows + 2) * length, count) << "more than a window at each end is left out";
        for (int64_t epoch = 0; epoch < 4; ++epoch) {
          std::set<int64_t> begins;
          for (int64_t i = 0; i < windows; ++i) begins.insert(loader.window_begin(epoch * windows + i));
          ASSERT_EQ(static_cast<int64_t>(begins.size()), windows);
          EXPECT_GE(*begins.begin(), range.begin);
          EXPECT_LE(*begins.rbegin() + length + 1, range.end);
          EXPECT_EQ(*begins.rbegin() - *begins.begin(), (windows - 1) * length);
          for (const int64_t b : begins) EXPECT_EQ((b - *begins.begin()) % length, 0);
        }
      }
}

TEST(Loaders, TargetsAreInputsShiftedByOne) {
  const Loader loader(counting(500), {50, 450}, {.batch = 3, .length = 16, .seed = 1});
  for (const int64_t step : {0, 1, 7, 8, 1000}) {
    const TokenBatch batch = loader.batch(step);
    EXPECT_EQ(batch.sequences, 3);
    EXPECT_EQ(batch.length, 16);
    const auto inputs = values(batch.inputs), targets = values(batch.targets);
    ASSERT_EQ(inputs.size(), 48u);
    ASSERT_EQ(targets.size(), 48u);
    for (size_t i = 0; i < 48; ++i) {
      EXPECT_EQ(inputs[i], loader.window_begin(step * 3 + static_cast<int64_t>(i / 16)) + static_cast<int64_t>(i % 16));
      EXPECT_EQ(targets[i], inputs[i] + 1);
    }
  }
}

TEST(Loaders, ABatchIsAFunctionOfSeedAndStep) {
  const Tokens tokens = counting(1000);
  const Loader::Options options{.batch = 4, .length = 10, .seed = 9};
  const Loader one(tokens, {0, 1000}, options), other(tokens, {0, 1000}, options);
  for (const int64_t step : {30, 0, 24, 25, 26, 5}) {  // out of order, and across the border of the first epoch
    EXPECT_EQ(values(one.batch(step).inputs), values(other.batch(step).inputs));
    EXPECT_EQ(values(one.batch(step).targets), values(one.batch(step).targets));
  }
  EXPECT_NE(values(one.batch(0).inputs), values(one.batch(1).inputs));
  const Loader reseeded(tokens, {0, 1000}, {.batch = 4, .length = 10, .seed = 10});
  EXPECT_NE(values(one.batch(0).inputs), values(reseeded.batch(0).inputs));
}

TEST(Loaders, BatchesOfOneCutMakeTheSameWindowsAsAnother) {
  const Tokens tokens = counting(203);
  const Loader singles(tokens, {0, 203}, {.batch = 1, .length = 10, .seed = 2});
  const Loader sevens(tokens, {0, 203}, {.batch = 7, .length = 10, .seed = 2});
  std::vector<int64_t> a, b;
  for (int64_t step = 0; step < 70; ++step)
    for (const int64_t id : values(singles.batch(step).inputs)) a.push_back(id);
  for (int64_t step = 0; step < 10; ++step)  // 19 windows an epoch: batches straddle epochs
    for (const int64_t id : values(sevens.batch(step).inputs)) b.push_back(id);
  EXPECT_EQ(singles.windows(), 19);
  EXPECT_EQ(a, b);
}

TEST(Loaders, EpochsDifferInOrderAndOffset) {
  const Loader loader(counting(1003), {0, 1003}, {.batch = 1, .length = 8, .seed = 4});
  std::set<std::vector<int64_t>> orders;
  std::set<int64_t> offsets, used;
  for (int64_t epoch = 0; epoch < 60; ++epoch) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < loader.windows(); ++i) order.push_back(loader.window_begin(epoch * loader.windows() + i));
    orders.insert(order);
    offsets.insert(order[0] % 8);
    for (const int64_t begin : order) used.insert(begin);
  }
  EXPECT_EQ(orders.size(), 60u);
  EXPECT_EQ(offsets.size(), 8u);
  EXPECT_EQ(*used.begin(), 0);
  EXPECT_EQ(used.size(), static_cast<size_t>(8 * loader.windows()));  // every place a window can have was one
}

TEST(Loaders, WindowsPastThirtyTwoBits) {
  const Path path = std::filesystem::temp_directory_path() / ("ssm_loader_test_" + std::to_string(getpid()));
  const int64_t count = (int64_t{1} << 32) + 100;
  TokenWriter(path, 256, "bytes").commit();
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(24).write(reinterpret_cast<const char*>(&count), sizeof count);
  }
  std::error_code problem;
  std::filesystem::resize_file(path, static_cast<uintmax_t>(256 + 2 * count), problem);  // a hole, no room on the disk
  if (problem) {
    std::filesystem::remove(path);
    GTEST_SKIP() << "the file system holds no sparse file of 8 GiB: " << problem.message();
  }
  const Tokens tokens = Tokens::open(path);
  std::filesystem::remove(path);
  const Loader loader(tokens, {0, count}, {.batch = 64, .length = 1, .seed = 1});
  EXPECT_EQ(loader.windows(), count - 1);
  int64_t highest = 0;
  for (int64_t n = 0; n < 64; ++n) {
    const int64_t begin = loader.window_begin(n);
    EXPECT_TRUE(begin >= 0 && begin + 1 < count);
    highest = std::max(highest, begin);
  }
  EXPECT_GT(highest, int64_t{1} << 31);
  EXPECT_EQ(loader.batch(int64_t{1} << 40).inputs.count(), 64);
  EXPECT_THROW(loader.batch(INT64_MAX / 2), Error);
  EXPECT_THROW(loader.batch(-1), Error);
}

TEST(Loaders, TooLittleDataSaysHowMuch) {
  const std::string error = error_of([] { Loader(counting(10), {0, 10}, {.batch = 1, .length = 10}); });
  EXPECT_NE(error.find("10 tokens found"), std::string::npos) << error;
  EXPECT_NE(error.find("10 + 1 needed"), std::string::npos) << error;
  EXPECT_EQ(Loader(counting(11), {0, 11}, {.batch = 1, .length = 10}).windows(), 1);
  EXPECT_THROW(Loader(counting(0), {0, 0}, {.batch = 1, .length = 1}), Error);
  EXPECT_THROW(Loader(counting(10), {0, 11}, {.batch = 1, .length = 2}), Error);
  EXPECT_THROW(Loader(counting(10), {6, 4}, {.batch = 1, .length = 2}), Error);
  EXPECT_THROW(Loader(counting(10), {0, 10}, {.batch = 0, .length = 2}), Error);
  EXPECT_THROW(Loader(counting(10), {0, 10}, {.batch = 1, .length = 0}), Error);
  EXPECT_THROW(Loader(counting(10), {0, 10}, {.batch = 1, .length = INT64_MAX}), Error);
  EXPECT_THROW(Loader(counting(10), {0, 10}, {.batch = INT64_MAX, .length = 2}), Error);
}

TEST(Splits, CoverEverythingOnce) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{9}, int64_t{10}, int64_t{1115394}, int64_t{1} << 40})
    for (const double fraction : {0.0, 0.1, 0.5, 0.999}) {
      const Split split = split_tokens(count, fraction);
      EXPECT_EQ(split.train.begin, 0);
      EXPECT_EQ(split.train.end, split.validation.begin);
      EXPECT_EQ(split.validation.end, count);
      EXPECT_LE(std::abs(static_cast<double>(split.validation.count()) - static_cast<double>(count) * fraction), 1);
    }
  EXPECT_EQ(split_tokens(1115394, 0.1).validation.count(), 111539);
  for (const double fraction : {-0.1, 1.0, std::nan("")}) EXPECT_THROW(split_tokens(10, fraction), Error);
}

TEST(SequentialWindowsTest, EveryTargetOnce) {
  for (int64_t count = 2; count <= 40; ++count)
    for (const int64_t length : {1, 2, 3, 8, 39, 100})
      for (const int64_t batch : {1, 2, 5}) {
        const SequentialWindows windows(counting(50), {4, 4 + count}, batch, length);
        std::vector<int64_t> inputs, targets, expected_inputs, expected_targets;
        for (int64_t step = 0; step < windows.steps(); ++step) {
          const TokenBatch b = windows.batch(step);
          EXPECT_TRUE(b.sequences >= 1 && b.sequences <= batch && b.length >= 1 && b.length <= length);
          EXPECT_EQ(b.inputs.count(), b.sequences * b.length);
          for (const int64_t id : values(b.inputs)) inputs.push_back(id);
          for (const int64_t id : values(b.targets)) targets.push_back(id);
        }
        for (int64_t i = 4; i < 4 + count - 1; ++i) {
          expected_inputs.push_back(i);
          expected_targets.push_back(i + 1);
        }
        EXPECT_EQ(inputs, expected_inputs) << count << " " << length << " " << batch;
        EXPECT_EQ(targets, expected_targets) << count << " " << length << " " << batch;
        EXPECT_EQ(windows.targets(), count - 1);
        EXPECT_THROW(windows.batch(windows.steps()), Error);
        EXPECT_THROW(windows.batch(-1), Error);
      }
  EXPECT_THROW(SequentialWindows(counting(10), {3, 4}, 1, 5), Error);
  EXPECT_THROW(SequentialWindows(counting(10), {0, 11}, 1, 5), Error);
}

TEST(FixedBatchesTest, AreGivenAsTheyAre) {
  std::vector<int64_t> ids(2 * 3 * 5);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i);
  const Tensor tensor = Tensor::of(std::span<const int64_t>(ids), {2, 3, 5});
  const FixedBatches batches(tensor, 30, "b.npy");
  EXPECT_EQ(batches.steps(), 2);
  EXPECT_EQ(batches.sequences(), 3);
  EXPECT_EQ(batches.length(), 4);
  const TokenBatch batch = batches.batch(1);
  EXPECT_EQ(values(batch.inputs), (std::vector<int64_t>{15, 16, 17, 18, 20, 21, 22, 23, 25, 26, 27, 28}));
  EXPECT_EQ(values(batch.targets), (std::vector<int64_t>{16, 17, 18, 19, 21, 22, 23, 24, 26, 27, 28, 29}));
  EXPECT_THROW(batches.batch(-1), Error);
  EXPECT_NE(error_of([&] { batches.batch(2); }).find("the file has 2"), std::string::npos);
  const std::string error = error_of([&] { FixedBatches(tensor, 22, "b.npy"); });
  EXPECT_NE(error.find("id 22 at (1, 1, 2)"), std::string::npos) << error;
  ids[3] = -1;
  EXPECT_THROW(FixedBatches(Tensor::of(std::span<const int64_t>(ids), {2, 3, 5}), 30, "b.npy"), Error);
  EXPECT_THROW(FixedBatches(tensor.reshape({6, 5}), 30, "b.npy"), Error);
  EXPECT_THROW(FixedBatches(tensor.reshape({2, 15, 1}), 30, "b.npy"), Error);
  EXPECT_THROW(FixedBatches(Tensor::zeros({0, 3, 5}, DType::i64), 30, "b.npy"), Error);
  EXPECT_THROW(FixedBatches(Tensor::zeros({2, 3, 5}, DType::i32), 30, "b.npy"), Error);
  EXPECT_THROW(FixedBatches(Tensor(), 30, "b.npy"), Error);
}

}  // namespace
}  // namespace ssm
