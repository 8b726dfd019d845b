#include "ops/linear/linear.h"

#include <gtest/gtest.h>

#include <cstring>

#include "ops/linear/gemm.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

OpCase linear_case(int64_t t, int64_t columns, int64_t out, bool with_bias) {
  return {
      .name = text("linear t=", t, " in=", columns, " out=", out),
      .inputs = {{"x", {t, columns}},
                 {"weight", {out, columns}, -1, 1, Role::weight},
                 {"bias", with_bias ? Shape{out} : Shape{}, -1, 1, Role::exact}},
      .call = [](Ctx& ctx, const std::vector<Var>& in) { return std::vector<Var>{linear(ctx, in[0], in[1], in[2])}; },
      .reduction = std::max({t, columns, out})};
}

TEST(Linear, EveryDeviceAgreesOnUglySizes) {
  // Around the lanes, streams of up to four rows, the end of the few-rows kernels at 16 and the tiles of GEMM.
  for (const int64_t t : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33})
    for (const auto& [columns, out] : {std::pair<int64_t, int64_t>{1, 1}, {7, 5}, {16, 3}, {33, 66}})
      check_op(linear_case(t, columns, out, t % 2 == 0));
}

TEST(Linear, EveryDeviceTakesStridedInputsAndSharesGradients) {
  // x is some columns of a wider value, and two products add into one gradient.
  check_op({.name = "linear on columns",
            .inputs = {{"wide", {19, 12}},
                       {"a", {3, 5}, -1, 1, Role::weight},
                       {"b", {4, 5}, -1, 1, Role::weight},
                       {"c", {6, 7}, -1, 1, Role::weight}},
            .call =
                [](Ctx& ctx, const std::vector<Var>& in) {
                  const std::vector<Var> parts = split(ctx, in[0], {5, 7});
                  return std::vector<Var>{linear(ctx, parts[0], in[1]), linear(ctx, parts[0], in[2]),
                                          linear(ctx, parts[1], in[3])};
                },
            .reduction = 19});
}

TEST(Linear, HalfPrecisionWeightsEqualTheirWidenedValues) {
  Ctx ctx{Device::cpu(), &test_threads()};
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int64_t t : {1, 5, 16, 40}) {
      const Tensor weight = random_tensor("weight", {70, 37}, DType::f32).to(dtype);
      const Var x{random_tensor("x", {t, 37}, DType::f32), {}};
      for_each_simd_target([&](const std::string& target) {
        SCOPED_TRACE(target);
        const Tensor narrow = linear(ctx, x, {weight, {}}).value,
                     wide = linear(ctx, x, {weight.to(DType::f32), {}}).value;
        expect_near(narrow, wide, 0, std::string(name_of(dtype)) + " weights");
      });
    }
  }
}

TEST(Linear, SameBitsForAnyNumberOfThreads) {
  for (const int64_t t : {3, 130}) {
    const Var x{random_tensor("x", {t, 300}, DType::f32), {}},
        weight{random_tensor("weight", {1500, 300}, DType::f32), {}};
    Tensor first;
    for (const int count : {1, 2, 3}) {
      Threads threads(count);
      const Tensor y = linear({Device::cpu(), &threads}, x, weight).value;
      if (!first) first = y;
      EXPECT_EQ(0, std::memcmp(first.raw(), y.raw(), static_cast<size_t>(y.bytes()))) << count << " threads, t " << t;
    }
  }
}

TEST(Linear, ARowDoesNotDependOnItsNeighbours) {
  // In any number of rows that the few-rows kernels take, for columns around lanes, pairs of vectors and passes of
  // tiles.
  Ctx ctx{Device::cpu(), &test_threads()};
  for (const int64_t columns : {1, 31, 48, 1024, 1061, 2500}) {
    const Tensor x = random_tensor("x", {16, columns}, DType::f32);
    const Var weight{random_tensor("weight", {11, columns}, DType::f32), {}};
    for_each_simd_target([&](const std::string& target) {
      SCOPED_TRACE(target);
      const Tensor all = linear(ctx, {x, {}}, weight).value;
      expect_near(all, linear({Device::ref(), &test_threads()}, {x, {}}, weight).value, tolerance(DType::f32, columns),
                  text(columns, " columns"));
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 9, 15})
        expect_near(linear(ctx, {x.rows(0, rows), {}}, weight).value, all.rows(0, rows), 0, text(rows, " rows"));
      for (int64_t t = 0; t < 16; ++t)
        expect_near(linear(ctx, {x.rows(t, t + 1), {}}, weight).value, all.rows(t, t + 1), 0, text("row ", t));
    });
  }
}

TEST(Linear, GemmTilesLargeProducts) {
  // Large enough for several tiles in both directions, all four transpositions.
  const int64_t m = 333, n = 517, k = 401;
  for (const auto ta : {Transpose::no, Transpose::yes}) {
    for (const auto tb : {Transpose::no, Transpose::yes}) {
      const Tensor a = random_tensor("a", ta == Transpose::yes ? Shape{k, m} : Shape{m, k}, DType::f32);
      const Tensor b = random_tensor("b", tb == Transpose::yes ? Shape{n, k} : Shape{k, n}, DType::f32);
      const Tensor c = random_tensor("c", {m, n}, DType::f32), expected = c.to(DType::f64);
      cpu::gemm(a.matrix<float>(), ta, b.matrix<float>(), tb, c.matrix<float>(), true, test_threads());
      ref::gemm(a.to(DType::f64).matrix<double>(), ta, b.to(DType::f64).matrix<double>(), tb, expected.matrix<double>(),
                true);
      expect_near(c, expected, tolerance(DType::f32, k), "c");
    }
  }
}

TEST(Linear, WrongShapesAreErrors) {
  Ctx ctx{Device::cpu(), &test_threads()};
  const Var x{Tensor::zeros({2, 4}, DType::f32), {}}, weight{Tensor::zeros({3, 5}, DType::f32), {}};
  EXPECT_THROW(linear(ctx, x, weight), Error);
}

}  // namespace
}  // namespace ssm::test
