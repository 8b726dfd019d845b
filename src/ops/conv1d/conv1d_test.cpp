#include "ops/conv1d/conv1d.h"

#include <gtest/gtest.h>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

using Lengths = std::vector<int64_t>;

struct ConvCase {
  Lengths lengths;
  int64_t e, w;
  Activation activation = Activation::silu;
  bool with_bias = true;
  Lengths slots = {};        // empty: no state
  int64_t slot_count = 0;    // rows of the state
  int64_t first_column = 0;  // x is the columns from here on of a matrix that is 3 columns wider
};

OpCase op_case(const ConvCase& c) {
  const Seqs seqs = Seqs::ragged(c.lengths, c.slots);
  const int64_t t = seqs.tokens(), wide = c.e + (c.first_column ? 3 : 0);
  const bool with_state = !c.slots.empty();
  return {.name = text("conv1d t=", t, " sequences=", seqs.count(), " e=", c.e, " w=", c.w,
                       with_state ? " with state" : "", c.with_bias ? "" : " without bias"),
          .inputs = {{"x", {t, wide}},
                     {"weight", {c.e, 1, c.w}, -1, 1, Role::exact},
                     {"bias", c.with_bias ? Shape{c.e} : Shape{}, -1, 1, Role::exact},
                     {"state", with_state ? Shape{c.slot_count, c.w - 1, c.e} : Shape{}, -1, 1, Role::exact}},
          .call =
              [c, seqs](Ctx& ctx, const std::vector<Var>& in) {
                Var x = in[0], state = in[3];
                if (c.first_column) x = split(ctx, x, {c.first_column, c.e, 3 - c.first_column})[1];
                const Var y = conv1d(ctx, x, in[1], in[2], c.activation, seqs, state ? &state : nullptr);
                return std::vector<Var>{y, state};
              },
          .reduction = std::max(t, c.w)};
}

TEST(Conv1d, EveryDeviceAgreesOnUglySizes) {
  for (const ConvCase& c : std::vector<ConvCase>{
           {.lengths = {1}, .e = 1, .w = 4},
           {.lengths = {2}, .e = 7, .w = 4, .with_bias = false},
           {.lengths = {5, 0, 1, 3}, .e = 16, .w = 4},
           {.lengths = {63}, .e = 17, .w = 3, .activation = Activation::none},
           {.lengths = {64}, .e = 5, .w = 4},
           {.lengths = {65}, .e = 33, .w = 2},
           {.lengths = {60, 7, 64}, .e = 3, .w = 7},
           {.lengths = {31}, .e = 515, .w = 4, .first_column = 1},  // two blocks of channels, misaligned rows
           {.lengths = {65, 2}, .e = 6, .w = 4, .first_column = 2},
           {.lengths = {3, 2}, .e = 5, .w = 1},
           {.lengths = {0, 0}, .e = 5, .w = 4},
       })
    check_op(op_case(c));
}

TEST(Conv1d, EveryDeviceCarriesStateOnUglyLengths) {
  for (const ConvCase& c : std::vector<ConvCase>{
           {.lengths = {1}, .e = 9, .w = 4, .slots = {0}, .slot_count = 1},
           {.lengths = {1, 1, 1}, .e = 8, .w = 4, .slots = {2, 0, 1}, .slot_count = 3},
           {.lengths = {2, 0, 3, 4}, .e = 5, .w = 4, .slots = {5, 1, 0, 3}, .slot_count = 6},
           {.lengths = {66, 1, 70}, .e = 4, .w = 4, .with_bias = false, .slots = {1, 3, 0}, .slot_count = 4},
           {.lengths = {2, 80}, .e = 3, .w = 70, .slots = {1, 0}, .slot_count = 2},  // wider than a block of rows
           {.lengths = {3, 1}, .e = 3, .w = 2, .activation = Activation::none, .slots = {1, 0}, .slot_count = 3},
           {.lengths = {0, 0}, .e = 4, .w = 3, .slots = {1, 0}, .slot_count = 3},
       })
    check_op(op_case(c));
}

TEST(Conv1d, WidthOneCarriesNothing) {
  Tape tape;
  for (Tape* recorder : {static_cast<Tape*>(nullptr), &tape}) {
    Ctx ctx{Device::cpu(), &test_threads(), recorder};
    const Tensor x = random_tensor("x", {3, 5}, DType::f32), weight = random_tensor("w", {5, 1, 1}, DType::f32);
    Var state{Tensor::zeros({2, 0, 5}, DType::f32), {}};
    const Seqs seqs = Seqs::ragged(Lengths{2, 1}, Lengths{1, 0});
    const Var y = conv1d(ctx, ctx.output(x), ctx.output(weight), {}, Activation::none, seqs, &state);
    for (int64_t i = 0; i < 15; ++i)
      EXPECT_EQ(y.value.data<float>()[i], x.data<float>()[i] * weight.data<float>()[i % 5]);
    EXPECT_EQ(state.value.shape(), (Shape{2, 0, 5}));
  }
}

// y and the final state of one sequence fed in pieces.
struct Streamed {
  Tensor y, state;
};

Streamed feed(const Ctx& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, const Lengths& pieces) {
  const int64_t e = x.size(1);
  Var state{Tensor::zeros({3, weight.size(2) - 1, e}, x.dtype()), {}};
  const Tensor y = Tensor::empty(x.shape(), x.dtype());
  int64_t at = 0;
  for (const int64_t piece : pieces) {
    const Var part = conv1d(ctx, {x.rows(at, at + piece), {}}, {weight, {}}, {bias, {}}, Activation::silu,
                            Seqs::ragged(Lengths{piece}, Lengths{1}), &state);
    y.rows(at, at + piece).copy_from(part.value);
    at += piece;
  }
  EXPECT_EQ(at, x.size(0));
  return {y, state.value};
}

TEST(Conv1d, SplitAnywhereEqualsWholeBitForBit) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    for (const int64_t w : {2, 4, 6}) {
      const int64_t t = 13, e = 11;
      const DType dtype = device.is_ref() ? DType::f64 : DType::f32;
      const Tensor x = random_tensor("x", {t, e}, dtype), weight = random_tensor("weight", {e, 1, w}, dtype),
                   bias = random_tensor("bias", {e}, dtype);
      const Streamed whole = feed(ctx, x, weight, bias, {t});
      const Var stateless =
          conv1d(ctx, {x, {}}, {weight, {}}, {bias, {}}, Activation::silu, Seqs::dense(1, t), nullptr);
      expect_near(stateless.value, whole.y, 0, "zero state and no state");
      std::vector<Lengths> ways = {Lengths(t, 1), {1, 0, 2, 3, 7}, {5, 8, 0}};
      for (int64_t at = 0; at <= t; ++at) ways.push_back({at, t - at});
      for (const Lengths& pieces : ways) {
        const Streamed parts = feed(ctx, x, weight, bias, pieces);
        expect_near(parts.y, whole.y, 0, "outputs");
        expect_near(parts.state, whole.state, 0, "state");
      }
    }
  }
}

TEST(Conv1d, PackedSequencesEqualEachAlone) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    const int64_t e = 19, w = 4;
    const Lengths lengths = {2, 65, 0, 1, 130, 3}, slots = {4, 0, 2, 6, 1, 3};
    const Seqs seqs = Seqs::ragged(lengths, slots);
    const Tensor x = random_tensor("x", {seqs.tokens(), e}, DType::f32),
                 before = random_tensor("state", {7, w - 1, e}, DType::f32);
    const Var weight{random_tensor("weight", {e, 1, w}, DType::f32), {}},
        bias{random_tensor("bias", {e}, DType::f32), {}};
    Var packed{before.clone(), {}}, alone{before.clone(), {}};
    const Var y = conv1d(ctx, {x, {}}, weight, bias, Activation::silu, seqs, &packed);
    for (size_t s = 0; s < lengths.size(); ++s) {
      const int64_t begin = seqs.offsets[s], end = seqs.offsets[s + 1];
      const Var one = conv1d(ctx, {x.rows(begin, end), {}}, weight, bias, Activation::silu,
                             Seqs::ragged(Lengths{lengths[s]}, Lengths{slots[s]}), &alone);
      expect_near(y.value.rows(begin, end), one.value, 0, text("sequence ", s));
    }
    expect_near(packed.value, alone.value, 0, "states");
    for (const int64_t untouched : {2, 5})
      expect_near(packed.value.rows(untouched, untouched + 1), before.rows(untouched, untouched + 1), 0,
                  text("slot ", untouched));
  }
}

TEST(Conv1d, UnderATapeTheOldStateStays) {
  Tape tape;
  const Ctx ctx{Device::cpu(), &test_threads(), &tape};
  const Tensor before = random_tensor("state", {2, 3, 4}, DType::f32), copy = before.clone();
  Var state{before, {}};
  conv1d(ctx, tape.variable(random_tensor("x", {5, 4}, DType::f32)), {random_tensor("w", {4, 1, 4}, DType::f32), {}},
         {}, Activation::silu, Seqs::ragged(Lengths{5}, Lengths{1}), &state);
  expect_near(before, copy, 0, "the old state");
  EXPECT_NE(state.value.storage(), before.storage());
  expect_near(state.value.rows(0, 1), before.rows(0, 1), 0, "a slot nobody named");
}

TEST(Conv1d, GradientsDoNotDependOnTheNumberOfThreads) {
  const Seqs seqs = Seqs::ragged(Lengths{200, 3, 97}, Lengths{0, 1, 2});
  std::vector<Tensor> first;
  for (const int count : {1, 2, 5}) {
    Threads threads(count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    std::vector<Var> in = {tape.variable(random_tensor("x", {300, 600}, DType::f32)),
                           tape.variable(random_tensor("weight", {600, 1, 4}, DType::f32)),
                           tape.variable(random_tensor("bias", {600}, DType::f32)),
                           tape.variable(random_tensor("state", {3, 3, 600}, DType::f32))};
    Var state = in[3];
    const Var y = conv1d(ctx, in[0], in[1], in[2], Activation::silu, seqs, &state);
    tape.backward({{y, random_tensor("dy", {300, 600}, DType::f32)}});
    std::vector<Tensor> gradients;
    for (const Var& var : in) gradients.push_back(var.grad->value);
    if (first.empty()) first = gradients;
    for (size_t i = 0; i < in.size(); ++i) expect_near(gradients[i], first[i], 0, text("gradient ", i));
  }
}

TEST(Conv1d, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Var x{Tensor::zeros({4, 6}, DType::f32), {}}, weight{Tensor::zeros({6, 1, 4}, DType::f32), {}};
  const Seqs seqs = Seqs::dense(2, 2);
  const auto call = [&](const Var& taps, const Var& bias, const Seqs& s, const Shape& state_shape) {
    Var state{Tensor::zeros(state_shape, DType::f32), {}};
    conv1d(ctx, x, taps, bias, Activation::silu, s, &state);
  };
  EXPECT_NO_THROW(call(weight, {}, seqs, {2, 3, 6}));
  EXPECT_THROW(call({Tensor::zeros({6, 4}, DType::f32), {}}, {}, seqs, {2, 3, 6}), Error);
  EXPECT_THROW(call({Tensor::zeros({5, 1, 4}, DType::f32), {}}, {}, seqs, {2, 3, 6}), Error);
  EXPECT_THROW(call(weight, {Tensor::zeros({5}, DType::f32), {}}, seqs, {2, 3, 6}), Error);
  EXPECT_THROW(call(weight, {}, Seqs::dense(1, 3), {2, 3, 6}), Error);
  EXPECT_THROW(call(weight, {}, seqs, {1, 3, 6}), Error);
  EXPECT_THROW(call(weight, {}, seqs, {2, 4, 6}), Error);
}

}  // namespace
}  // namespace ssm::test
