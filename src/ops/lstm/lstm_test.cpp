#include "ops/lstm/lstm.h"

#include <gtest/gtest.h>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

using Lengths = std::vector<int64_t>;

struct LstmCase {
  Lengths lengths;
  int64_t e;
  bool with_bias = true;
  Lengths slots = {};      // empty: no state
  int64_t slot_count = 0;  // rows of the state
  int64_t wider = 0;       // x is the first columns of a matrix wider by this
};

OpCase op_case(const LstmCase& c) {
  const Seqs seqs = Seqs::ragged(c.lengths, c.slots);
  const bool with_state = !c.slots.empty();
  const Shape state = with_state ? Shape{c.slot_count, c.e} : Shape{};
  return {.name = text("lstm t=", seqs.tokens(), " sequences=", seqs.count(), " e=", c.e,
                       with_state ? " with state" : "", c.with_bias ? "" : " without bias"),
          .inputs = {{"x", {seqs.tokens(), 4 * c.e + c.wider}, -2, 2},
                     {"weight", {4 * c.e, c.e}, -1, 1, Role::exact},
                     {"bias", c.with_bias ? Shape{4 * c.e} : Shape{}, -1, 1, Role::exact},
                     {"h", state, -1, 1, Role::exact},
                     {"c", state, -2, 2, Role::exact}},
          .call =
              [c, seqs, with_state](Ctx& ctx, const std::vector<Var>& in) {
                Var x = in[0], h = in[3], cell = in[4];
                if (c.wider) x = split(ctx, x, {4 * c.e, c.wider})[0];
                const Var y = lstm(ctx, x, in[1], in[2], seqs, with_state ? &h : nullptr, with_state ? &cell : nullptr);
                return std::vector<Var>{y, h, cell};
              },
          .reduction = 4 * c.e * std::max<int64_t>(1, seqs.longest)};  // an error goes through all rows after it
}

TEST(Lstm, EveryDeviceAgreesOnUglySizes) {
  for (const LstmCase& c : std::vector<LstmCase>{
           {{1}, 1},
           {{2}, 7, false},
           {{5, 0, 1, 3}, 6},
           {{13, 2}, 5, true, {}, 0, 3},
           {{0, 0}, 4},
       })
    check_op(op_case(c));
  if (skipped_for_want_of_gpu()) return;
  const OpCase wide = op_case({{40, 3}, 33});
  test_devices().back().first.is_cuda() ? check_cuda(wide) : check_cpu(wide);
}

TEST(Lstm, EveryDeviceCarriesState) {
  for (const LstmCase& c : std::vector<LstmCase>{
           {{1}, 9, true, {0}, 1},
           {{1, 1, 1}, 4, true, {2, 0, 1}, 3},
           {{2, 0, 3, 4}, 5, false, {5, 1, 0, 3}, 6},
           {{0, 0}, 3, true, {1, 0}, 3},
       })
    check_op(op_case(c));
}

TEST(Lstm, SameBitsForAnyNumberOfThreads) {
  const Seqs seqs = Seqs::ragged(Lengths{20, 3, 11}, Lengths{0, 1, 2});
  std::vector<Tensor> first;
  for (const int count : {1, 2, 3}) {
    Threads threads(count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    const std::vector<Var> in = {tape.variable(random_tensor("x", {34, 200}, DType::f32)),
                                 tape.variable(random_tensor("weight", {200, 50}, DType::f32, -0.2, 0.2)),
                                 tape.variable(random_tensor("bias", {200}, DType::f32)),
                                 tape.variable(random_tensor("h", {3, 50}, DType::f32)),
                                 tape.variable(random_tensor("c", {3, 50}, DType::f32))};
    Var h = in[3], c = in[4];
    const Var y = lstm(ctx, in[0], in[1], in[2], seqs, &h, &c);
    tape.backward({{y, random_tensor("dy", {34, 50}, DType::f32)}});
    std::vector<Tensor> found = {y.value};
    for (const Var& var : in) found.push_back(var.grad->value);
    if (first.empty()) first = found;
    for (size_t i = 0; i < found.size(); ++i) expect_near(found[i], first[i], 0, text(count, " threads, ", i));
  }
}

TEST(Lstm, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const auto zeros = [](const Shape& shape) { return Var{Tensor::zeros(shape, DType::f32), {}}; };
  const auto call = [&](const Shape& x, const Shape& weight, const Shape& bias, const Shape& h, const Shape& c) {
    Var state_h = zeros(h), state_c = zeros(c);
    lstm(ctx, zeros(x), zeros(weight), zeros(bias), Seqs::dense(2, 2), &state_h, &state_c);
  };
  EXPECT_NO_THROW(call({4, 12}, {12, 3}, {12}, {2, 3}, {2, 3}));
  EXPECT_THROW(call({4, 10}, {12, 3}, {12}, {2, 3}, {2, 3}), Error);
  EXPECT_THROW(call({3, 12}, {12, 3}, {12}, {2, 3}, {2, 3}), Error);
  EXPECT_THROW(call({4, 12}, {12, 4}, {12}, {2, 3}, {2, 3}), Error);
  EXPECT_THROW(call({4, 12}, {12, 3}, {11}, {2, 3}, {2, 3}), Error);
  EXPECT_THROW(call({4, 12}, {12, 3}, {12}, {1, 3}, {1, 3}), Error);
  EXPECT_THROW(call({4, 12}, {12, 3}, {12}, {2, 3}, {3, 3}), Error);
}

}  // namespace
}  // namespace ssm::test
