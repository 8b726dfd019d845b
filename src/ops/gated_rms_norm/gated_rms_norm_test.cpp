#include "ops/gated_rms_norm/gated_rms_norm.h"

#include <gtest/gtest.h>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

// Large, or a narrow group of values near zero bends more sharply than finite differences can follow.
constexpr double kEpsilon = 0.1;

OpCase gated_norm_case(int64_t t, int64_t e, int64_t groups, GateOrder order) {
  const bool gate_first = order == GateOrder::gate_first;
  return {
      .name = text("gated_rms_norm t=", t, " e=", e, " groups=", groups, gate_first ? " gate first" : " norm first"),
      .inputs = {{"y", {t, e}}, {"z", {t, e}, -4, 4}, {"weight", {e}, 0.5, 1.5, Role::exact}},
      .call =
          [=](Ctx& ctx, const std::vector<Var>& in) {
            return std::vector<Var>{gated_rms_norm(ctx, in[0], in[1], in[2], groups, kEpsilon, order)};
          },
      .reduction = std::max(t, e)};
}

OpCase gate_case(int64_t t, int64_t e) {
  return {.name = text("gate t=", t, " e=", e),
          .inputs = {{"y", {t, e}}, {"z", {t, e}, -4, 4}},
          .call = [](Ctx& ctx, const std::vector<Var>& in) { return std::vector<Var>{gate(ctx, in[0], in[1])}; }};
}

TEST(GatedRmsNorm, EveryDeviceAgreesOnUglySizes) {
  struct Sizes {
    int64_t t, e, groups;
  };
  for (const auto& [t, e, groups] : {Sizes{1, 2, 1},
                                     {3, 6, 2},
                                     {2, 48, 3},
                                     {5, 33, 1},
                                     {7, 51, 3},
                                     {4, 5, 5},
                                     {63, 9, 3},
                                     {64, 5, 1},
                                     {65, 34, 2},
                                     {130, 3, 1}}) {
    check_op(gated_norm_case(t, e, groups, GateOrder::gate_first));
    check_op(gated_norm_case(t, e, groups, GateOrder::norm_first));
    check_op(gate_case(t, e));
  }
}

TEST(GatedRmsNorm, WrongShapesAreErrors) {
  Ctx ctx{Device::cpu(), &test_threads()};
  const auto zeros = [](const Shape& shape) { return Var{Tensor::zeros(shape, DType::f32), {}}; };
  const Var y = zeros({2, 4});
  EXPECT_THROW(gated_rms_norm(ctx, y, y, zeros({3}), 1, 1e-5, GateOrder::gate_first), Error);
  EXPECT_THROW(gated_rms_norm(ctx, y, y, zeros({4}), 3, 1e-5, GateOrder::gate_first), Error);
  EXPECT_THROW(gate(ctx, y, zeros({2, 3})), Error);
}

}  // namespace
}  // namespace ssm::test
