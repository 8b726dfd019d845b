#include "ops/diag_scan/diag_scan.h"

#include <gtest/gtest.h>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

using Lengths = std::vector<int64_t>;

struct ScanCase {
  Lengths lengths;
  int64_t e, n, parts = 2;
  bool low_rank = false;
  Lengths slots = {};  // empty: no state
  int64_t slot_count = 0;
  bool with_D = true, with_outputs = true;
};

// Re(1 + z) is 0.5 to 0.7 and Im(1 + z) -0.5 to -0.3: inside the unit circle.
OpInput z_input(const ScanCase& c) { return {"z", {c.parts, c.n, c.e}, -0.5, -0.3, Role::exact}; }

OpCase op_case(const ScanCase& c) {
  const Seqs seqs = Seqs::ragged(c.lengths, c.slots);
  const Shape modes = {c.parts, c.n, c.e}, low = c.low_rank ? modes : Shape{};
  const bool with_state = !c.slots.empty();
  return {.name = text("diag_scan t=", seqs.tokens(), " sequences=", seqs.count(), " e=", c.e, " n=", c.n,
                       " parts=", c.parts, c.low_rank ? " low rank" : "", with_state ? " with state" : ""),
          .inputs = {z_input(c),
                     {"b", modes, -1, 1, Role::exact},
                     {"c", modes, -1, 1, Role::exact},
                     {"f", low, -0.2, 0.2, Role::exact},
                     {"g", low, -0.2, 0.2, Role::exact},
                     {"u", {seqs.tokens(), c.e}},
                     {"D", c.with_D ? Shape{1, c.e} : Shape{}, -1, 1, Role::exact},
                     {"state", with_state ? Shape{c.slot_count, c.parts, c.n, c.e} : Shape{}, -1, 1, Role::exact}},
          .call =
              [c, seqs](Ctx& ctx, const std::vector<Var>& in) {
                const StateSpace system{.z = in[0], .b = in[1], .c = in[2], .f = in[3], .g = in[4]};
                Var state = in[7], y;
                if (c.with_outputs)
                  y = diag_scan(ctx, system, in[5], in[6], seqs, state ? &state : nullptr);
                else
                  diag_scan_state(ctx, system, in[5], seqs, &state);
                return std::vector<Var>{y, state};
              },
          .reduction = std::max<int64_t>(seqs.tokens(), 1) * c.n};
}

TEST(DiagScan, EveryDeviceAgreesOnUglySizes) {
  for (const ScanCase& c : std::vector<ScanCase>{
           {.lengths = {1}, .e = 1, .n = 1},
           {.lengths = {5}, .e = 7, .n = 3, .with_D = false},
           {.lengths = {64}, .e = 17, .n = 2},
           {.lengths = {65}, .e = 16, .n = 5},
           {.lengths = {130, 0, 1, 3}, .e = 19, .n = 4},
           {.lengths = {0, 0}, .e = 3, .n = 2},
           {.lengths = {70, 2}, .e = 33, .n = 3, .parts = 1},
           {.lengths = {1, 9}, .e = 2, .n = 1, .parts = 1, .with_D = false},
           {.lengths = {3}, .e = 5, .n = 2, .low_rank = true},
           {.lengths = {66, 0, 1}, .e = 18, .n = 3, .low_rank = true},
           {.lengths = {35, 1}, .e = 3, .n = 40},  // modes of more than a warp, and of more than one
           {.lengths = {33, 2}, .e = 2, .n = 130, .low_rank = true},
       })
    check_op(op_case(c));
}

TEST(DiagScan, EveryDeviceCarriesState) {
  for (const ScanCase& c : std::vector<ScanCase>{
           {.lengths = {1, 1, 1}, .e = 9, .n = 3, .slots = {2, 0, 1}, .slot_count = 3},
           {.lengths = {2, 0, 66}, .e = 5, .n = 2, .slots = {3, 1, 0}, .slot_count = 5},
           {.lengths = {3, 4}, .e = 6, .n = 3, .parts = 1, .slots = {1, 0}, .slot_count = 3},
           {.lengths = {65, 2, 0}, .e = 4, .n = 3, .low_rank = true, .slots = {0, 2, 1}, .slot_count = 4},
           {.lengths = {70, 2},
           .e = 18,
           .n = 2,
           .slots = {1, 0},
           .slot_count = 2,
           .with_D = false,
           .with_outputs = false},
           {.lengths = {5, 1},
           .e = 3,
           .n = 2,
           .low_rank = true,
           .slots = {1, 0},
           .slot_count = 2,
           .with_D = false,
           .with_outputs = false},
       })
    check_op(op_case(c));
}

StateSpace random_system(int64_t parts, int64_t n, int64_t e, bool low_rank, DType dtype) {
  const auto random = [&](const char* name, double low, double high) {
    return Var{random_tensor(name, {parts, n, e}, dtype, low, high), {}};
  };
  StateSpace system{.z = random("z", -0.5, -0.3), .b = random("b", -1, 1), .c = random("c", -1, 1)};
  if (low_rank) system.f = random("f", -0.2, 0.2), system.g = random("g", -0.2, 0.2);
  return system;
}

TEST(DiagScan, SplitAnywhereEqualsWholeBitForBit) {
  for (const bool low_rank : {false, true}) {
    for (const auto& [device, dtype] : {std::pair{Device::ref(), DType::f64}, {Device::cpu(), DType::f32}}) {
      const Ctx ctx{device, &test_threads()};
      const int64_t t = 150, e = 20, n = 3;
      const StateSpace system = random_system(2, n, e, low_rank, dtype);
      const Tensor u = random_tensor("u", {t, e}, dtype);
      const Var D{random_tensor("D", {e}, dtype), {}};
      const auto feed = [&](const Lengths& pieces, Tensor* final_state) {
        Var state{Tensor::zeros({2, 2, n, e}, dtype), {}};
        const Tensor y = Tensor::empty({t, e}, dtype);
        int64_t at = 0;
        for (const int64_t piece : pieces) {
          const Seqs seqs = Seqs::ragged(Lengths{piece}, Lengths{1});
          y.rows(at, at + piece).copy_from(diag_scan(ctx, system, {u.rows(at, at + piece), {}}, D, seqs, &state).value);
          at += piece;
        }
        *final_state = state.value;
        return y;
      };
      Tensor whole_state, state;
      const Tensor whole = feed({t}, &whole_state);
      expect_near(diag_scan(ctx, system, {u, {}}, D, Seqs::dense(1, t), nullptr).value, whole, 0, "without state");
      for (const Lengths& pieces : {Lengths(t, 1), {64, 64, 22}, {1, 149}, {63, 2, 0, 85}}) {
        expect_near(feed(pieces, &state), whole, 0, "outputs");
        expect_near(state, whole_state, 0, "state");
      }
      Var only{Tensor::zeros({2, 2, n, e}, dtype), {}};
      diag_scan_state(ctx, system, {u, {}}, Seqs::ragged(Lengths{t}, Lengths{1}), &only);
      expect_near(only.value, whole_state, 0, "the state alone");
    }
  }
}

TEST(DiagScan, GradientsDoNotDependOnTheNumberOfThreads) {
  const Seqs seqs = Seqs::ragged(Lengths{200, 3, 97}, Lengths{0, 1, 2});
  std::vector<Tensor> first;
  for (const int count : {1, 2, 3}) {
    Threads threads(count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    const StateSpace fixed = random_system(2, 4, 70, true, DType::f32);
    const StateSpace system{.z = tape.variable(fixed.z.value),
                            .b = tape.variable(fixed.b.value),
                            .c = tape.variable(fixed.c.value),
                            .f = tape.variable(fixed.f.value),
                            .g = tape.variable(fixed.g.value)};
    const Var u = tape.variable(random_tensor("u", {300, 70}, DType::f32)),
              D = tape.variable(random_tensor("D", {1, 70}, DType::f32));
    const Var y = diag_scan(ctx, system, u, D, seqs, nullptr);
    tape.backward({{y, random_tensor("dy", {300, 70}, DType::f32)}});
    std::vector<Tensor> gradients;
    for (const Var& var : {system.z, system.b, system.c, system.f, system.g, u, D})
      gradients.push_back(var.grad->value);
    if (first.empty()) first = gradients;
    for (size_t i = 0; i < gradients.size(); ++i) expect_near(gradients[i], first[i], 0, text("gradient ", i));
  }
}

TEST(DiagScan, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const StateSpace system = random_system(2, 3, 4, false, DType::f32);
  const Var u{Tensor::zeros({5, 4}, DType::f32), {}}, D{Tensor::zeros({1, 4}, DType::f32), {}};
  const auto call = [&](const StateSpace& s, const Var& input, const Var& skip, const Seqs& seqs,
                        const Shape& state_shape) {
    Var state{Tensor::zeros(state_shape, DType::f32), {}};
    diag_scan(ctx, s, input, skip, seqs, &state);
  };
  const Seqs seqs = Seqs::dense(1, 5);
  EXPECT_NO_THROW(call(system, u, D, seqs, {1, 2, 3, 4}));
  EXPECT_THROW(call(system, {Tensor::zeros({5, 3}, DType::f32), {}}, D, seqs, {1, 2, 3, 4}), Error);
  EXPECT_THROW(call(system, u, {Tensor::zeros({1, 3}, DType::f32), {}}, seqs, {1, 2, 3, 4}), Error);
  EXPECT_THROW(call(system, u, D, Seqs::dense(1, 4), {1, 2, 3, 4}), Error);
  EXPECT_THROW(call(system, u, D, seqs, {1, 1, 3, 4}), Error);
  EXPECT_THROW(call(system, u, D, Seqs::ragged(Lengths{5}, Lengths{1}), {1, 2, 3, 4}), Error);
  StateSpace half = system;
  half.f = system.b;
  EXPECT_THROW(call(half, u, D, seqs, {1, 2, 3, 4}), Error);
}

}  // namespace
}  // namespace ssm::test
