#include "ops/activation/activation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

TEST(Activation, EveryDeviceAgreesOnUglySizes) {
  for (const int64_t t : {0, 1, 5, 300})
    for (const int64_t d : {1, 7, 64, 67}) {
      check_op({.name = text("gelu ", t, " x ", d),
                .inputs = {{"x", {t, d}, -3, 3}},
                .call = [](Ctx& ctx, const std::vector<Var>& in) { return std::vector<Var>{gelu(ctx, in[0])}; }});
      check_op({.name = text("glu ", t, " x ", d),
                .inputs = {{"x", {t, 2 * d}, -6, 6}},
                .call = [](Ctx& ctx, const std::vector<Var>& in) { return std::vector<Var>{glu(ctx, in[0])}; }});
    }
}

TEST(Activation, GeluIsAccurateEverywhere) {
  std::vector<float> points = {0.0f, -0.0f, 1e-30f, 100.0f, -100.0f, INFINITY};
  for (float x = -8; x <= 8; x += 0.001f) points.push_back(x);
  const auto t = static_cast<int64_t>(points.size());
  const Tensor x = Tensor::of(points).reshape({1, t});
  for_each_simd_target([&](const std::string& target) {
    const Tensor y = gelu({Device::cpu(), &test_threads()}, {x, {}}).value;
    for (size_t i = 0; i < points.size(); ++i) {
      const double v = points[i], expected = 0.5 * v * std::erfc(-v / std::sqrt(2.0)), found = y.data<float>()[i];
      if (std::isinf(v))
        EXPECT_EQ(found, v) << target;
      else
        EXPECT_NEAR(found, expected, 5e-7 * std::max(1.0, std::abs(v))) << target << " at " << v;
    }
  });
}

TEST(Activation, NaNStaysNaN) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Tensor x = Tensor::of(std::vector<float>{NAN, 1, 1, NAN}).reshape({1, 4});
  const Tensor y = gelu(ctx, {x, {}}).value, z = glu(ctx, {x, {}}).value;
  EXPECT_TRUE(std::isnan(y.data<float>()[0]) && std::isnan(y.data<float>()[3]));
  EXPECT_TRUE(std::isnan(z.data<float>()[0]) && std::isnan(z.data<float>()[1]));
}

TEST(Activation, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  EXPECT_THROW(gelu(ctx, {Tensor::zeros({4}, DType::f32), {}}), Error);
  EXPECT_THROW(glu(ctx, {Tensor::zeros({4, 3}, DType::f32), {}}), Error);
}

}  // namespace
}  // namespace ssm::test
