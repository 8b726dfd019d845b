#include "ops/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/linear/linear.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

// Targets over the whole vocabulary; every third position is left out when `gaps`.
Tensor some_targets(int64_t t, int64_t vocab, bool gaps = false) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < t; ++i) ids.push_back(gaps && i % 3 == 1 ? kIgnoredTarget : (vocab - 1 + i * 7) % vocab);
  return Tensor::of(ids);
}

OpCase logits_case(int64_t t, int64_t vocab, bool gaps) {
  return {.name = text("cross_entropy t=", t, " vocab=", vocab, gaps ? " with gaps" : ""),
          .inputs = {{"logits", {t, vocab}, -5, 5}},
          .call =
              [=](Ctx& ctx, const std::vector<Var>& in) {
                return std::vector<Var>{cross_entropy(ctx, in[0], some_targets(t, vocab, gaps))};
              },
          .reduction = std::max(t, vocab)};
}

OpCase linear_case(int64_t t, int64_t vocab, int64_t d, bool gaps) {
  return {.name = text("linear_cross_entropy t=", t, " vocab=", vocab, " d=", d, gaps ? " with gaps" : ""),
          .inputs = {{"x", {t, d}, -2, 2}, {"weight", {vocab, d}, -2, 2, Role::weight}},
          .call =
              [=](Ctx& ctx, const std::vector<Var>& in) {
                return std::vector<Var>{linear_cross_entropy(ctx, in[0], in[1], some_targets(t, vocab, gaps))};
              },
          .reduction = t + vocab + d};
}

TEST(CrossEntropy, EveryDeviceAgreesOnUglySizes) {
  for (const auto& [t, vocab] :
       {std::pair<int64_t, int64_t>{1, 1}, {1, 2}, {2, 7}, {3, 16}, {5, 17}, {64, 31}, {131, 5}, {2, 257}})
    for (const bool gaps : {false, true}) check_op(logits_case(t, vocab, gaps));
}

TEST(CrossEntropy, EveryDeviceFusesWithTheHeadOnUglySizes) {
  for (const auto& [t, vocab, d] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {1, 3, 5}, {5, 16, 7}, {17, 33, 3}, {19, 5, 16}, {2, 131, 9}})
    for (const bool gaps : {false, true}) check_op(linear_case(t, vocab, d, gaps));
}

// Chunks are 512 rows, and 48 of the large vocabulary.
TEST(CrossEntropy, ChunksOfRowsMeet) {
  for (const int64_t t : {511, 512, 513, 1025}) check_cpu(linear_case(t, 5, 3, true));
  check_cpu(linear_case(49, 131101, 1, true));
}

TEST(CrossEntropy, EveryDeviceAddsToGradientsThatAreThere) {
  check_op({.name = "linear_cross_entropy twice",
            .inputs = {{"x", {6, 5}}, {"weight", {11, 5}, -1, 1, Role::weight}},
            .call =
                [](Ctx& ctx, const std::vector<Var>& in) {
                  return std::vector<Var>{linear_cross_entropy(ctx, in[0], in[1], some_targets(6, 11)),
                                          linear_cross_entropy(ctx, in[0], in[1], some_targets(6, 10, true))};
                },
            .reduction = 11});
}

TEST(CrossEntropyCuda, RowsOfEveryLengthAndChunksMeet) {
  if (!test_devices().front().first.is_cuda() || skipped_for_want_of_gpu()) return;
  for (const int64_t vocab : {4095, 4096, 4103, 8200, 50280}) check_cuda(logits_case(3, vocab, true));
  check_cuda(linear_case(70, 5003, 3, true));
  check_cuda(linear_case(5, 57345, 2, false));     // no longer kept in shared memory
  check_cuda(linear_case(129, 1100003, 1, true));  // 128 rows and one
}

TEST(CrossEntropy, EqualLogitsCostTheLogarithmOfTheirNumber) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    for (const float level : {-1000.0f, 0.0f, 1000.0f}) {
      const Tensor logits = Tensor::of(std::vector<float>(37, level)).reshape({1, 37});
      EXPECT_NEAR(cross_entropy(ctx, {logits, {}}, some_targets(1, 37)).value.item<float>(), std::log(37.0), 1e-6);
    }
  }
}

TEST(CrossEntropy, FarLogitsNeitherOverflowNorVanish) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    const Tensor logits = Tensor::of(std::vector<float>{3e4f, -3e4f, 0, -3e4f, 0}).reshape({1, 5});
    const auto loss_of = [&](int64_t target) {
      return cross_entropy(ctx, {logits, {}}, Tensor::of(std::vector<int64_t>{target})).value.item<float>();
    };
    EXPECT_EQ(loss_of(0), 0);
    EXPECT_EQ(loss_of(1), 6e4f);
    EXPECT_EQ(loss_of(2), 3e4f);
  }
}

TEST(CrossEntropy, TokenLossesAndTheirMean) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    const int64_t t = 10, vocab = 23, d = 8;
    const Tensor x = random_tensor("x", {t, d}, DType::f32), weight = random_tensor("weight", {vocab, d}, DType::f32);
    const Tensor targets = some_targets(t, vocab, true), losses = linear_token_losses(ctx, x, weight, targets);
    const Var logits = linear(ctx, {x, {}}, {weight, {}});
    double sum = 0;
    int64_t counted = 0;
    for (int64_t i = 0; i < t; ++i) {
      const Var one = cross_entropy(ctx, {logits.value.rows(i, i + 1), {}}, targets.rows(i, i + 1));
      EXPECT_NEAR(losses.data<float>()[i], one.value.item<float>(), 1e-6) << "position " << i;
      sum += losses.data<float>()[i];
      counted += targets.data<int64_t>()[i] != kIgnoredTarget;
    }
    EXPECT_EQ(counted, 7);
    EXPECT_NEAR(linear_cross_entropy(ctx, {x, {}}, {weight, {}}, targets).value.item<float>(), sum / 7, 1e-6);
    EXPECT_NEAR(cross_entropy(ctx, logits, targets).value.item<float>(), sum / 7, 1e-6);
  }
}

TEST(CrossEntropy, NothingCountedIsZeroWithZeroGradients) {
  const Tensor targets = Tensor::of(std::vector<int64_t>{-100, -100});
  for (const Device device : {Device::ref(), Device::cpu()}) {
    Tape tape;
    const Ctx ctx{device, &test_threads(), &tape};
    const Var x = tape.variable(random_tensor("x", {2, 3}, DType::f32)),
              weight = tape.variable(random_tensor("weight", {5, 3}, DType::f32)),
              logits = tape.variable(random_tensor("logits", {2, 5}, DType::f32));
    const Var fused = linear_cross_entropy(ctx, x, weight, targets), plain = cross_entropy(ctx, logits, targets);
    EXPECT_EQ(fused.value.item<float>(), 0);
    EXPECT_EQ(plain.value.item<float>(), 0);
    const Tensor one = Tensor::of(std::vector<float>{1});
    tape.backward({{fused, one}, {plain, one}});
    for (const Var& var : {x, weight, logits})
      for (const float value : var.grad->value.span<float>()) EXPECT_EQ(value, 0);
  }
}

TEST(CrossEntropy, NanLogitsMakeNanLosses) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Device device : {Device::ref(), Device::cpu()}) {
    for (int64_t place = 0; place < 37; place += 6) {
      for_each_simd_target([&](const std::string& target) {
        Tape tape;
        const Ctx ctx{device, &test_threads(), &tape};
        const Tensor values = random_tensor("logits", {2, 37}, DType::f32);
        values.data<float>()[place] = nan;
        const Var logits = tape.variable(values);
        const Var loss = cross_entropy(ctx, logits, some_targets(2, 37));
        EXPECT_TRUE(std::isnan(loss.value.item<float>())) << "NaN at " << place << " on " << target;
        tape.backward(loss);
        EXPECT_TRUE(std::isnan(logits.grad->value.data<float>()[36])) << target;
        EXPECT_FALSE(std::isnan(logits.grad->value.data<float>()[37])) << "the other row, " << target;
      });
    }
  }
}

TEST(CrossEntropy, StorageDtypesWithoutATape) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Tensor x = random_tensor("x", {21, 19}, DType::f32), targets = some_targets(21, 45);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const Tensor weight = random_tensor("weight", {45, 19}, dtype);
    const Tensor losses = linear_token_losses(ctx, x, weight, targets),
                 expected = linear_token_losses(ctx, x, weight.to(DType::f32), targets);
    expect_near(losses, expected, tolerance(DType::f32, 45), text(name_of(dtype)));
    Tape tape;
    const Ctx recording{Device::cpu(), &test_threads(), &tape};
    EXPECT_THROW(linear_cross_entropy(recording, tape.variable(x), {weight, {}}, targets), Error);
  }
}

TEST(CrossEntropy, TheBitsDoNotDependOnTheNumberOfThreads) {
  std::vector<Tensor> first;
  for (const int count : {1, 2, 5}) {
    Threads threads(count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    const Var x = tape.variable(random_tensor("x", {70, 24}, DType::f32)),
              weight = tape.variable(random_tensor("weight", {300, 24}, DType::f32));
    const Var loss = linear_cross_entropy(ctx, x, weight, some_targets(70, 300, true));
    tape.backward(loss);
    const std::vector<Tensor> found = {loss.value, x.grad->value, weight.grad->value};
    if (first.empty()) first = found;
    for (size_t i = 0; i < found.size(); ++i) expect_near(found[i], first[i], 0, text(count, " threads, ", i));
  }
}

TEST(CrossEntropy, WrongInputsAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Var logits{Tensor::zeros({2, 4}, DType::f32), {}}, weight{Tensor::zeros({4, 3}, DType::f32), {}};
  const Var x{Tensor::zeros({2, 3}, DType::f32), {}};
  const auto ids = [](std::vector<int64_t> values) { return Tensor::of(values); };
  EXPECT_NO_THROW(cross_entropy(ctx, logits, ids({0, 3})));
  EXPECT_NO_THROW(cross_entropy(ctx, logits, ids({0, -7}), -7));
  EXPECT_THROW(cross_entropy(ctx, logits, ids({0})), Error);
  EXPECT_THROW(cross_entropy(ctx, logits, Tensor::zeros({2}, DType::i32)), Error);
  EXPECT_THROW(cross_entropy(ctx, logits, ids({0, -1})), Error);
  EXPECT_THROW(linear_cross_entropy(ctx, x, logits, ids({0, 1})), Error);
  try {
    linear_cross_entropy(ctx, x, weight, ids({3, 4}));
    ADD_FAILURE() << "target 4 was accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("target 4 at position 1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace ssm::test
