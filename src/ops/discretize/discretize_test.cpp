#include "ops/discretize/discretize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

struct SystemCase {
  int64_t e, copies, n;
  bool complex = true, low_rank = false;
  Discretization method = Discretization::zoh;
  StepTransform step = StepTransform::exp;
  double dt_low = -3, dt_high = -1;
};

OpCase op_case(const SystemCase& c) {
  const int64_t parts = c.complex ? 2 : 1;
  return {.name = text("discretize e=", c.e, " copies=", c.copies, " n=", c.n, " parts=", parts,
                       c.low_rank ? " low rank" : "", c.method == Discretization::zoh ? " zoh" : " bilinear"),
          .inputs = {{"inv_dt", {c.e, 1}, c.dt_low, c.dt_high, Role::exact},
                     {"A_real", {c.copies, c.n}, -1.5, 0.5, Role::exact},
                     {"A_imag", c.complex ? Shape{c.copies, c.n} : Shape{}, 0, 20, Role::exact},
                     {"B", {1, c.copies, c.n, parts}, -1, 1, Role::exact},
                     {"C", {1, c.e, c.n, parts}, -1, 1, Role::exact},
                     {"P", c.low_rank ? Shape{1, c.copies, c.n, 2} : Shape{}, -1, 1, Role::exact}},
          .call =
              [c](Ctx& ctx, const std::vector<Var>& in) {
                const StateSpace out = discretize(ctx, {.inv_dt = in[0],
                                                        .A_real = in[1],
                                                        .A_imag = in[2],
                                                        .B = in[3],
                                                        .C = in[4],
                                                        .P = in[5],
                                                        .method = c.method,
                                                        .step = c.step});
                return std::vector<Var>{out.z, out.b, out.c, out.f, out.g};
              },
          .reduction = c.e * c.n};
}

TEST(Discretize, EveryDeviceAgreesOnUglySizes) {
  for (const SystemCase& c : std::vector<SystemCase>{
           {.e = 1, .copies = 1, .n = 1},
           {.e = 6, .copies = 2, .n = 5},
           {.e = 6, .copies = 3, .n = 3, .step = StepTransform::softplus},
           {.e = 3, .copies = 3, .n = 4, .complex = false},
           {.e = 35, .copies = 35, .n = 2, .method = Discretization::bilinear},
           {.e = 4, .copies = 2, .n = 3, .complex = false, .method = Discretization::bilinear},
           {.e = 6, .copies = 2, .n = 4, .low_rank = true, .method = Discretization::bilinear},
           {.e = 5,
           .copies = 5,
           .n = 1,
           .low_rank = true,
           .method = Discretization::bilinear,
           .step = StepTransform::softplus},
           {.e = 4, .copies = 4, .n = 3, .complex = false, .dt_low = -9, .dt_high = -7},  // the series of (6)
           {.e = 6, .copies = 3, .n = 37},                                                // more than a warp of modes
           {.e = 2, .copies = 1, .n = 33, .low_rank = true, .method = Discretization::bilinear},
       })
    check_op(op_case(c));
}

// (2) must be what solving the linear system of the bilinear rule gives: (I - Delta A / 2) x' = (I + Delta A / 2) x +
// Delta B u with A = diag(lambda) - P P*, written out over modes and their conjugates.
TEST(Discretize, LowRankStepSolvesTheBilinearEquation) {
  const int64_t n = 4;
  const Ctx ctx{Device::ref(), &test_threads()};
  const auto random = [](const char* name, const Shape& shape, double low, double high) {
    return Var{random_tensor(name, shape, DType::f64, low, high), {}};
  };
  const Var inv_dt = random("inv_dt", {1, 1}, -2, -1), A_real = random("A_real", {1, n}, -1, 0),
            A_imag = random("A_imag", {1, n}, 1, 20), B = random("B", {1, 1, n, 2}, -1, 1),
            C = random("C", {1, 1, n, 2}, -1, 1), P = random("P", {1, 1, n, 2}, -1, 1),
            start = random("x", {2, n, 1}, -1, 1);
  const StateSpace system = discretize(ctx, {.inv_dt = inv_dt,
                                             .A_real = A_real,
                                             .A_imag = A_imag,
                                             .B = B,
                                             .C = C,
                                             .P = P,
                                             .method = Discretization::bilinear});
  using Complex = std::complex<double>;
  const auto mode = [](const Var& of, int64_t k) {  // (parts, n, 1)
    return Complex(of.value.data<double>()[k], of.value.data<double>()[n + k]);
  };
  const auto pair = [](const Var& of, int64_t k) {
    return Complex(of.value.data<double>()[2 * k], of.value.data<double>()[2 * k + 1]);
  };
  const double u = 0.7, step = std::exp(inv_dt.value.data<double>()[0]);
  double kappa = 0, before = 0, after = 0;
  for (int64_t k = 0; k < n; ++k) kappa += (mode(system.f, k) * mode(start, k)).real();
  std::vector<Complex> x;
  for (int64_t k = 0; k < n; ++k) {
    x.push_back(mode(start, k) * (1.0 + mode(system.z, k)) - mode(system.g, k) * kappa + mode(system.b, k) * u);
    before += 2 * (std::conj(pair(P, k)) * mode(start, k)).real();  // P* x over modes and conjugates
    after += 2 * (std::conj(pair(P, k)) * x.back()).real();
  }
  for (int64_t k = 0; k < n; ++k) {
    const Complex lambda(-std::exp(A_real.value.data<double>()[k]), -A_imag.value.data<double>()[k]);
    const Complex Ax = lambda * mode(start, k) - pair(P, k) * before,
                  Ax_after = lambda * x[static_cast<size_t>(k)] - pair(P, k) * after;
    const Complex left = x[static_cast<size_t>(k)] - step / 2 * Ax_after,
                  right = mode(start, k) + step / 2 * Ax + step * pair(B, k) * u;
    EXPECT_LT(std::abs(left - right), 1e-13) << "mode " << k;
  }
}

TEST(Discretize, RealAIsComplexAWithoutImaginaryPart) {
  const Ctx ctx{Device::ref(), &test_threads()};
  const Var inv_dt{random_tensor("inv_dt", {3, 1}, DType::f64, -3, -1), {}},
      A_real{random_tensor("A_real", {3, 2}, DType::f64), {}}, zero{Tensor::zeros({3, 2}, DType::f64), {}},
      B{random_tensor("B", {1, 3, 2, 1}, DType::f64), {}}, C{random_tensor("C", {1, 3, 2, 1}, DType::f64), {}};
  const auto widened = [](const Var& real) {
    const Tensor wide = Tensor::zeros({1, 3, 2, 2}, DType::f64);
    for (int64_t i = 0; i < 6; ++i) wide.data<double>()[2 * i] = real.value.data<double>()[i];
    return Var{wide, {}};
  };
  for (const Discretization method : {Discretization::zoh, Discretization::bilinear}) {
    const StateSpace real = discretize(ctx, {.inv_dt = inv_dt, .A_real = A_real, .B = B, .C = C, .method = method}),
                     wide = discretize(ctx, {.inv_dt = inv_dt,
                                             .A_real = A_real,
                                             .A_imag = zero,
                                             .B = widened(B),
                                             .C = widened(C),
                                             .method = method});
    expect_near(wide.z.value.rows(0, 1), real.z.value, 1e-15, "z");
    expect_near(wide.b.value.rows(0, 1), real.b.value, 1e-15, "b");
    for (const double im : wide.z.value.rows(1, 2).span<double>()) EXPECT_EQ(im, 0);
  }
}

TEST(Discretize, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const auto zeros = [](const Shape& shape) { return Var{Tensor::zeros(shape, DType::f32), {}}; };
  DiscretizeIn good{.inv_dt = zeros({4, 1}),
                    .A_real = zeros({2, 3}),
                    .A_imag = zeros({2, 3}),
                    .B = zeros({1, 2, 3, 2}),
                    .C = zeros({1, 4, 3, 2})};
  EXPECT_NO_THROW(discretize(ctx, good));
  DiscretizeIn bad = good;
  bad.A_real = zeros({3, 3});
  EXPECT_THROW(discretize(ctx, bad), Error);
  bad = good;
  bad.B = zeros({1, 2, 3, 1});
  EXPECT_THROW(discretize(ctx, bad), Error);
  bad = good;
  bad.C = zeros({1, 2, 3, 2});
  EXPECT_THROW(discretize(ctx, bad), Error);
  bad = good;
  bad.P = zeros({1, 2, 3, 2});  // with the zero-order hold
  EXPECT_THROW(discretize(ctx, bad), Error);
}

}  // namespace
}  // namespace ssm::test
