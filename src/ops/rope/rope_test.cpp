#include "ops/rope/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

using Lengths = std::vector<int64_t>;

struct RopeCase {
  Lengths lengths, before;
  int64_t heads, p;
  Rotation rotation;
  int64_t wider = 0;  // x is the first columns of a matrix wider by this
};

OpCase op_case(const RopeCase& c) {
  const Seqs seqs = Seqs::ragged(c.lengths);
  const int64_t columns = c.heads * c.p;
  return {.name = text("rope t=", seqs.tokens(), " heads=", c.heads, " p=", c.p, " dim=", c.rotation.dim,
                       c.rotation.interleaved ? " interleaved" : ""),
          .inputs = {{"x", {seqs.tokens(), columns + c.wider}}},
          .call =
              [c, seqs, columns](Ctx& ctx, const std::vector<Var>& in) {
                Var x = in[0];
                if (c.wider) x = split(ctx, x, {columns, c.wider})[0];
                return std::vector<Var>{rope(ctx, x, c.heads, c.rotation, seqs, c.before)};
              },
          .reduction = 2};
}

TEST(Rope, EveryDeviceAgreesOnUglySizes) {
  for (const RopeCase& c : std::vector<RopeCase>{
           {{1}, {0}, 1, 2, {.dim = 2}},
           {{5, 0, 1, 3}, {0, 7, 100, 3}, 3, 7, {.dim = 6}},
           {{65}, {2}, 2, 20, {.dim = 10, .base = 500}, 3},
           {{66, 3}, {0, 9}, 2, 34, {.dim = 34}},
           {{4, 9}, {1, 0}, 3, 9, {.dim = 4, .interleaved = true}},
           {{0}, {5}, 2, 4, {.dim = 4}},
       })
    check_op(op_case(c));
}

// (2): products of two turned heads depend on the distance of their positions alone.
TEST(Rope, ProductsDependOnDistance) {
  const Ctx ctx{Device::ref(), &test_threads()};
  const Tensor q = random_tensor("q", {1, 8}, DType::f64), k = random_tensor("k", {1, 8}, DType::f64);
  for (const bool interleaved : {false, true}) {
    const auto product = [&](int64_t at_q, int64_t at_k) {
      const auto turned = [&](const Tensor& x, int64_t at) {
        return rope(ctx, {x, {}}, 1, {.dim = 8, .interleaved = interleaved}, Seqs::dense(1, 1), {at}).value;
      };
      const Tensor a = turned(q, at_q), b = turned(k, at_k);
      double sum = 0;
      for (int64_t i = 0; i < 8; ++i) sum += a.data<double>()[i] * b.data<double>()[i];
      return sum;
    };
    EXPECT_NEAR(product(12, 7), product(1005, 1000), 1e-11);
    EXPECT_GT(std::abs(product(12, 7) - product(12, 6)), 1e-3);
  }
}

TEST(Rope, FarPositionsKeepTheirAngles) {
  const int64_t far = 1000003;
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Tensor x = Tensor::of(std::vector<float>{1, 0}).reshape({1, 2});
  const Tensor y = rope(ctx, {x, {}}, 1, {.dim = 2}, Seqs::dense(1, 1), {far}).value;
  EXPECT_NEAR(y.data<float>()[0], std::cos(static_cast<double>(far)), 1e-7);
  EXPECT_NEAR(y.data<float>()[1], std::sin(static_cast<double>(far)), 1e-7);
}

TEST(Rope, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Var x{Tensor::zeros({4, 12}, DType::f32), {}};
  const auto call = [&](int64_t heads, const Rotation& rotation, const Seqs& seqs, const Lengths& before) {
    rope(ctx, x, heads, rotation, seqs, before);
  };
  EXPECT_NO_THROW(call(2, {.dim = 6}, Seqs::dense(1, 4), {0}));
  EXPECT_THROW(call(5, {.dim = 2}, Seqs::dense(1, 4), {0}), Error);
  EXPECT_THROW(call(2, {.dim = 8}, Seqs::dense(1, 4), {0}), Error);
  EXPECT_THROW(call(2, {.dim = 3}, Seqs::dense(1, 4), {0}), Error);
  EXPECT_THROW(call(2, {.dim = 6, .base = 0}, Seqs::dense(1, 4), {0}), Error);
  EXPECT_THROW(call(2, {.dim = 6}, Seqs::dense(1, 3), {0}), Error);
  EXPECT_THROW(call(2, {.dim = 6}, Seqs::dense(2, 2), {0}), Error);
}

}  // namespace
}  // namespace ssm::test
