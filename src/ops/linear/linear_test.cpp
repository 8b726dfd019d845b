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

bool on_the_gpu() { return test_devices().front().first.is_cuda() && !skipped_for_want_of_gpu(); }

TEST(LinearCuda, EveryFormAtTheSizesItTakes) {
  if (!on_the_gpu()) return;
  struct Size {
    int64_t t, columns, out;
  };
  for (const Size& size : {
           Size{1, 768, 520},
           {8, 1280, 513},
           {9, 768, 520},
           {16, 1024, 600},  // tiles of any count
           {1, 1536, 80},
           {5, 1544, 80},
           {16, 96, 600},
           {33, 1536, 80},
           {64, 48, 300},  // groups of 16 rows
           {3, 777, 100},
           {64, 131, 70},  // rows on no boundary
           {65, 768, 80},
           {17, 768, 1400},
           {40, 72, 1400},  // fewer columns than blocks want
           {64, 776, 1403},
           {50, 2056, 4200},
           {64, 4096, 160},
           {33, 128, 520},  // clusters of any size, tiles with outputs of nobody
           {66, 768, 1400}  // the library
       })
    check_cuda(linear_case(size.t, size.columns, size.out, size.t % 2 == 0));
}

TEST(LinearCuda, GemmOnColumnsOfWiderMatrices) {
  if (!on_the_gpu()) return;
  if constexpr (kHasCuda) {
    const int64_t m = 67, n = 131, k = 93;
    const Device gpu = Device::cuda();
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const DType result : {dtype, DType::f32}) {
        for (const bool turn_a : {false, true}) {
          for (const bool turn_b : {false, true}) {
            const auto matrix = [&](const char* name, int64_t rows, int64_t columns, DType stored) {
              return random_tensor(name, {rows, columns + 8}, DType::f32).to(stored);
            };
            const Tensor a = matrix("a", turn_a ? k : m, turn_a ? m : k, dtype),
                         b = matrix("b", turn_b ? n : k, turn_b ? k : n, dtype), c = matrix("c", m, n, result);
            for (const int64_t first : {0, 1, 8}) {
              const auto part = [&](const Tensor& whole) { return whole.columns(first, first + whole.size(1) - 8); };
              const Tensor found = c.on(gpu);
              const Transpose ta = turn_a ? Transpose::yes : Transpose::no,
                              tb = turn_b ? Transpose::yes : Transpose::no;
              cuda::gemm(part(a.on(gpu)), ta, part(b.on(gpu)), tb, part(found), true, cuda::stream(gpu));
              const Tensor expected = c.to(DType::f64);
              ref::gemm(part(a.to(DType::f64)).matrix<double>(), ta, part(b.to(DType::f64)).matrix<double>(), tb,
                        part(expected).matrix<double>(), true);
              expect_near(found.on(Device::cpu()).to(DType::f32), expected.to(DType::f32), tolerance(result, k),
                          text(name_of(dtype), " to ", name_of(result), ", from column ", first));
            }
          }
        }
      }
    }
  }
}

// x in f32 beside a narrower weight is not rounded: the result is right to what two numbers of the weight's type hold.
TEST(LinearCuda, AWideXIsNotRounded) {
  if (!on_the_gpu()) return;
  const Ctx gpu{Device::cuda(), &test_threads()}, ref{Device::ref(), &test_threads()};
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const auto& [t, columns, out] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 64, 24}, {5, 33, 7}, {70, 256, 130}, {0, 8, 8}})
      for (const bool with_bias : {false, true}) {
        const Tensor x = random_tensor("x", {t, columns + 3}, DType::f32).columns(0, columns),
                     weight = random_tensor("weight", {out, columns}, DType::f32).to(dtype),
                     bias = random_tensor("bias", {out}, DType::f32);
        const auto optional = [&](const Tensor& value) { return Var{with_bias ? value : Tensor(), {}}; };
        const Tensor found =
            linear(gpu, {x.on(gpu.device), {}}, {weight.on(gpu.device), {}}, optional(bias.on(gpu.device)))
                .value.on(Device::cpu());
        const Tensor exact =
            linear(ref, {x.to(DType::f64), {}}, {weight.to(DType::f64), {}}, optional(bias.to(DType::f64))).value;
        expect_near(found, exact.to(DType::f32), 0x1p-16, text(name_of(dtype), " weight, t ", t, ", ", columns));
      }
}

// In a recording kernels start before those in front of them have ended.
TEST(LinearCuda, ARecordedChainGivesTheSameBits) {
  if (!on_the_gpu()) return;
  if constexpr (kHasCuda) {
    const Device gpu = Device::cuda();
    const Ctx ctx{gpu, &test_threads()};
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const int64_t t : {1, 7, 16, 40}) {
        const auto weight = [&](const char* name, int64_t out, int64_t in) {
          return Var{random_tensor(name, {out, in}, DType::f32, -0.1, 0.1).to(dtype).on(gpu), {}};
        };
        const Var x{random_tensor("x", {t, 256}, DType::f32).to(dtype).on(gpu), {}};
        const Var up = weight("up", 1024, 256), narrow = weight("narrow", 40, 512), wide = weight("wide", 512, 24),
                  down = weight("down", 256, 512);
        Tensor y;
        const auto chain = [&] {
          Var now = x;
          for (int layer = 0; layer < 20; ++layer) {
            const Var wider = linear(ctx, now, up);
            const Var few = linear(ctx, {wider.value.columns(0, 512), {}}, narrow);
            now = linear(ctx, linear(ctx, {few.value.columns(0, 24), {}}, wide), down);
          }
          y = now.value;
        };
        chain();
        const Tensor expected = y.on(Device::cpu());
        cuda::Graph graph(gpu, chain);
        for (int run = 0; run < 3; ++run) {
          y.fill_zero();
          graph.launch();
          const Tensor found = y.on(Device::cpu());
          EXPECT_EQ(0, std::memcmp(found.raw(), expected.raw(), static_cast<size_t>(found.bytes())))
              << name_of(dtype) << ", " << t << " rows, run " << run;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ssm::test
