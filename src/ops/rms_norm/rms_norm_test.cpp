#include "ops/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

OpCase norm_case(int64_t t, int64_t d, bool with_residual, bool with_weight) {
  return {.name = text("rms_norm t=", t, " d=", d, with_residual ? " with residual" : "",
                       with_weight ? "" : " without weight"),
          .inputs = {{"x", {t, d}},
                     {"residual", with_residual ? Shape{t, d} : Shape{}, -1, 1, Role::exact},
                     {"weight", with_weight ? Shape{d} : Shape{}, 0.5, 1.5, Role::exact}},
          .call =
              [](Ctx& ctx, const std::vector<Var>& in) {
                const auto [y, sum] = rms_norm(ctx, in[0], in[1], in[2], 1e-5);
                return in[1] ? std::vector<Var>{y, sum} : std::vector<Var>{y};
              },
          .reduction = std::max(t, d)};
}

TEST(RmsNorm, EveryDeviceAgreesOnUglySizes) {
  for (const auto& [t, d] :
       {std::pair<int64_t, int64_t>{1, 2}, {1, 7}, {3, 8}, {2, 16}, {5, 33}, {63, 9}, {64, 5}, {65, 31}, {130, 3}})
    for (const bool with_residual : {false, true})
      for (const bool with_weight : {false, true}) check_op(norm_case(t, d, with_residual, with_weight));
}

// x as it comes from a product in f32, y in what the next one takes.
TEST(RmsNorm, EveryDeviceTakesAWiderXThanY) {
  for (const auto& [t, d] : {std::pair<int64_t, int64_t>{1, 8}, {3, 7}, {65, 32}, {130, 768}}) {
    OpCase wide = norm_case(t, d, true, true);
    wide.name += " from f32";
    wide.inputs[0].role = Role::exact;
    wide.inputs.push_back({"of y's type", {1, 1}, -1, 1, Role::activation, false});
    wide.call = [](Ctx& ctx, const std::vector<Var>& in) {
      const auto [y, sum] = rms_norm(ctx, in[0], in[1], in[2], 1e-5, in[3].value.dtype());
      return std::vector<Var>{y, sum};
    };
    check_op(wide);
  }
}

TEST(RmsNorm, ColumnsOfAWiderMatrixAreTakenAsTheyAre) {
  Ctx ctx{Device::cpu(), &test_threads()};
  const Tensor wide = random_tensor("wide", {5, 11}, DType::f32);
  const Tensor view = wide.columns(3, 8);
  const Tensor found = rms_norm(ctx, {view, {}}, {}, {}, 1e-5).y.value;
  expect_near(found, rms_norm(ctx, {view.clone(), {}}, {}, {}, 1e-5).y.value, 0, "a view");
}

TEST(RmsNorm, WrongShapesAreErrors) {
  Ctx ctx{Device::cpu(), &test_threads()};
  const Var x{Tensor::zeros({2, 4}, DType::f32), {}}, weight{Tensor::zeros({3}, DType::f32), {}};
  EXPECT_THROW(rms_norm(ctx, x, {}, weight, 1e-5), Error);
}

}  // namespace
}  // namespace ssm::test
