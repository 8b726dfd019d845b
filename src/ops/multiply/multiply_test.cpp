#include "ops/multiply/multiply.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

TEST(Multiply, EveryDeviceAgreesOnUglySizes) {
  for (const int64_t t : {0, 1, 5, 300})
    for (const int64_t d : {1, 7, 64, 67})
      check_op(
          {.name = text("multiply ", t, " x ", d),
           .inputs = {{"a", {t, d}}, {"b", {t, d}}},
           .call = [](Ctx& ctx, const std::vector<Var>& in) { return std::vector<Var>{multiply(ctx, in[0], in[1])}; }});
}

TEST(Multiply, EveryDeviceTakesASquareAndOnlyOneGradient) {
  check_op({.name = "square", .inputs = {{"a", {3, 5}}}, .call = [](Ctx& ctx, const std::vector<Var>& in) {
              return std::vector<Var>{multiply(ctx, in[0], in[0])};
            }});
  check_op(
      {.name = "constant b",
       .inputs = {{"a", {3, 5}}, {.name = "b", .shape = {3, 5}, .differentiable = false}},
       .call = [](Ctx& ctx, const std::vector<Var>& in) { return std::vector<Var>{multiply(ctx, in[0], in[1])}; }});
}

TEST(Multiply, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const auto zeros = [](const Shape& shape) { return Var{Tensor::zeros(shape, DType::f32), {}}; };
  EXPECT_THROW(multiply(ctx, zeros({4, 3}), zeros({4, 4})), Error);
  EXPECT_THROW(multiply(ctx, zeros({4}), zeros({4})), Error);
}

}  // namespace
}  // namespace ssm::test
