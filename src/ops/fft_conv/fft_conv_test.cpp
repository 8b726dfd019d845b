#include "ops/fft_conv/fft_conv.h"

#include <gtest/gtest.h>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

using Lengths = std::vector<int64_t>;

struct ConvCase {
  Lengths lengths;
  int64_t e, taps;
  bool with_D = true;
};

OpCase op_case(const ConvCase& c) {
  const Seqs seqs = Seqs::ragged(c.lengths);
  return {
      .name = text("fft_conv t=", seqs.tokens(), " sequences=", seqs.count(), " e=", c.e, " taps=", c.taps),
      .inputs = {{"u", {seqs.tokens(), c.e}},
                 {"K", {c.taps, c.e}, -1, 1, Role::exact},
                 {"D", c.with_D ? Shape{1, c.e} : Shape{}, -1, 1, Role::exact}},
      .call = [seqs](Ctx& ctx,
                     const std::vector<Var>& in) { return std::vector<Var>{fft_conv(ctx, in[0], in[1], in[2], seqs)}; },
      .reduction = seqs.tokens()};
}

TEST(FftConv, EveryDeviceAgreesOnUglySizes) {
  for (const ConvCase& c : std::vector<ConvCase>{
           {.lengths = {1}, .e = 1, .taps = 1},
           {.lengths = {2}, .e = 3, .taps = 2, .with_D = false},
           {.lengths = {7}, .e = 16, .taps = 9},
           {.lengths = {61}, .e = 17, .taps = 61},  // a prime
           {.lengths = {5, 0, 1, 3, 5}, .e = 5, .taps = 8},
           {.lengths = {64, 65, 127}, .e = 3, .taps = 127},
           {.lengths = {0, 0}, .e = 3, .taps = 0},
           {.lengths = {130, 300}, .e = 34, .taps = 300},
           {.lengths = std::vector<int64_t>(70, 3), .e = 2, .taps = 4},
       })
    check_op(op_case(c));
}

TEST(FftConv, PackedSequencesEqualEachAloneBitForBit) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Lengths lengths = {2, 65, 0, 1, 130, 2};
  const Seqs seqs = Seqs::ragged(lengths);
  const Tensor u = random_tensor("u", {seqs.tokens(), 19}, DType::f32), K = random_tensor("K", {130, 19}, DType::f32);
  const Tensor packed = fft_conv(ctx, {u, {}}, {K, {}}, {}, seqs).value;
  for (size_t s = 0; s < lengths.size(); ++s) {
    const int64_t begin = seqs.offsets[s], end = seqs.offsets[s + 1];
    const Tensor alone =
        fft_conv(ctx, {u.rows(begin, end), {}}, {K.rows(0, lengths[s]), {}}, {}, Seqs::dense(1, lengths[s])).value;
    expect_near(packed.rows(begin, end), alone, 0, text("sequence ", s));
  }
}

TEST(FftConv, EveryDeviceStaysExactOverLongSequences) {
  if (skipped_for_want_of_gpu()) return;
  const Device device = test_devices().back().first;
  const int64_t length = 5003;
  const Seqs seqs = Seqs::dense(1, length);
  const Tensor u = random_tensor("u", {length, 2}, DType::f32), K = random_tensor("K", {length, 2}, DType::f32);
  const Ctx exact{Device::ref(), &test_threads()}, fast{device, &test_threads()};
  const Tensor expected = fft_conv(exact, {u.to(DType::f64), {}}, {K.to(DType::f64), {}}, {}, seqs).value;
  expect_near(fft_conv(fast, {u.on(device), {}}, {K.on(device), {}}, {}, seqs).value, expected, 2e-6, "y");
}

TEST(FftConv, GradientsDoNotDependOnTheNumberOfThreads) {
  const Seqs seqs = Seqs::ragged(Lengths{200, 3, 97, 200});
  std::vector<Tensor> first;
  for (const int count : {1, 2, 3}) {
    Threads threads(count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    const Var u = tape.variable(random_tensor("u", {500, 70}, DType::f32)),
              K = tape.variable(random_tensor("K", {200, 70}, DType::f32)),
              D = tape.variable(random_tensor("D", {1, 70}, DType::f32));
    const Var y = fft_conv(ctx, u, K, D, seqs);
    tape.backward({{y, random_tensor("dy", {500, 70}, DType::f32)}});
    const std::vector<Tensor> results = {y.value, u.grad->value, K.grad->value, D.grad->value};
    if (first.empty()) first = results;
    for (size_t i = 0; i < results.size(); ++i) expect_near(results[i], first[i], 0, text("result ", i));
  }
}

TEST(FftConv, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const auto zeros = [](const Shape& shape) { return Var{Tensor::zeros(shape, DType::f32), {}}; };
  const Seqs seqs = Seqs::dense(2, 3);
  EXPECT_NO_THROW(fft_conv(ctx, zeros({6, 4}), zeros({3, 4}), zeros({4}), seqs));
  EXPECT_THROW(fft_conv(ctx, zeros({6, 4}), zeros({2, 4}), zeros({4}), seqs), Error);
  EXPECT_THROW(fft_conv(ctx, zeros({6, 4}), zeros({3, 5}), zeros({4}), seqs), Error);
  EXPECT_THROW(fft_conv(ctx, zeros({6, 4}), zeros({3, 4}), zeros({5}), seqs), Error);
  EXPECT_THROW(fft_conv(ctx, zeros({5, 4}), zeros({3, 4}), zeros({4}), seqs), Error);
}

}  // namespace
}  // namespace ssm::test
