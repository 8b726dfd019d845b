// Discretisations against SciPy's, the three views against each other and against SciPy's simulation, and zero-order
// hold against the differential equation solved in small steps.
#include "lti/linear_system.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/files.h"
#include "core/rng.h"
#include "formats/safetensors.h"

namespace ssm {
namespace {

constexpr double kTolerance = 1e-10;

double largest(const std::vector<double>& values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::abs(value));
  return most;
}

// Beside the largest entry; NaN is far from everything.
void expect_near(const std::vector<double>& found, const std::vector<double>& expected, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  const double bound = kTolerance * std::max(1.0, largest(expected));
  for (size_t i = 0; i < found.size(); ++i)
    ASSERT_LE(std::abs(found[i] - expected[i]), bound) << what << ", element " << i;
}

std::vector<double> block(const Tensor& matrix, int64_t top, int64_t left, int64_t rows, int64_t columns) {
  std::vector<double> values;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < columns; ++k)
      values.push_back(matrix.data<double>()[(top + i) * matrix.size(1) + left + k]);
  return values;
}

std::vector<double> numbers(const Tensor& tensor) {
  const auto all = tensor.span<double>();
  return {all.begin(), all.end()};
}

struct Golden {
  std::string name;
  LinearSystem system;
  double dt;
};

class Lti : public testing::Test {
 protected:
  Lti() : tensors_(read_safetensors(Path(SSM_SOURCE_ROOT) / "src/lti/testdata/discretized.safetensors")) {}

  std::vector<Golden> goldens() const {
    std::vector<Golden> all;
    for (int number = 0; number < 50; ++number) {
      const std::string name = text(number < 10 ? "0" : "", number, ".");
      const Tensor& both = tensors_.at(name + "system");
      const int64_t* sizes = tensors_.at(name + "sizes").data<int64_t>();
      const int64_t n = sizes[0], inputs = sizes[1], outputs = sizes[2];
      const LinearSystem system{.n = n,
                                .inputs = inputs,
                                .outputs = outputs,
                                .A = block(both, 0, 0, n, n),
                                .B = block(both, 0, n, n, inputs),
                                .C = block(both, n, 0, outputs, n),
                                .D = block(both, n, n, outputs, inputs)};
      all.push_back({name, system, *tensors_.at(name + "dt").data<double>()});
    }
    return all;
  }

  const TensorMap tensors_;
};

std::vector<double> recurrence_from_zero(const LinearSystem& system, std::span<const double> u) {
  std::vector<double> state(static_cast<size_t>(system.n));
  return run_recurrence(system, u, state);
}

std::vector<double> noise(int64_t count) {
  const Rng rng(5, "noise");
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(rng.normal(static_cast<uint64_t>(i)));
  return values;
}

TEST_F(Lti, DiscretizationsAreSciPys) {
  const std::vector<std::pair<std::string, Discretization>> methods = {
      {"zoh", Discretization::zero_order_hold()},
      {"euler", Discretization::euler()},
      {"bilinear", Discretization::bilinear()},
      {"backward_diff", Discretization::backward_euler()},
      {"gbt", Discretization::generalized_bilinear(0.3)}};
  for (const auto& [name, system, dt] : goldens())
    for (const auto& [method, ours] : methods) {
      const LinearSystem found = discretize(system, dt, ours);
      const Tensor& expected = tensors_.at(name + method);
      expect_near(found.A, block(expected, 0, 0, system.n, system.n), name + method + " A");
      expect_near(found.B, block(expected, 0, system.n, system.n, system.inputs), name + method + " B");
      EXPECT_EQ(found.C, system.C);
      EXPECT_EQ(found.D, system.D);
    }
}

TEST_F(Lti, TheRecurrenceIsSciPysSimulation) {
  for (const auto& [name, system, dt] : goldens()) {
    const LinearSystem discrete = discretize(system, dt, Discretization::zero_order_hold());
    const std::vector<double> u = numbers(tensors_.at(name + "u"));
    expect_near(recurrence_from_zero(discrete, u), numbers(tensors_.at(name + "y")), name);
  }
}

TEST_F(Lti, RecurrenceConvolutionAndScanAreEqual) {
  for (const auto& [name, system, dt] : goldens()) {
    const LinearSystem discrete = discretize(system, dt, Discretization::bilinear());
    for (const int64_t t : {0, 1, 2, 3, 7, 8, 9, 64, 100, 1000}) {
      const std::vector<double> u = noise(t * system.inputs), expected = recurrence_from_zero(discrete, u);
      expect_near(run_convolution(discrete, u), expected, text(name, "convolution of ", t));
      expect_near(run_scan(discrete, u), expected, text(name, "scan of ", t));
    }
  }
}

TEST_F(Lti, ARecurrenceGoesOnFromItsState) {
  for (const auto& [name, system, dt] : goldens()) {
    const LinearSystem discrete = discretize(system, dt, Discretization::zero_order_hold());
    const std::vector<double> u = noise(30 * system.inputs);
    std::vector<double> state(static_cast<size_t>(system.n)), pieces;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {1, 1}, {1, 17}, {17, 30}}) {
      const std::vector<double> y =
          run_recurrence(discrete,
                         std::span(u).subspan(static_cast<size_t>(begin * system.inputs),
                                              static_cast<size_t>((end - begin) * system.inputs)),
                         state);
      pieces.insert(pieces.end(), y.begin(), y.end());
    }
    EXPECT_EQ(pieces, recurrence_from_zero(discrete, u)) << name;
  }
}

// Runge and Kutta's rule of fourth order with steps so small that it is exact to rounding, the input held over each
// sample: what zero-order hold says it computes.
TEST_F(Lti, ZeroOrderHoldSolvesTheDifferentialEquation) {
  for (const auto& [name, system, dt] : goldens()) {
    const int64_t n = system.n, t = 6;
    const std::vector<double> u = noise(t * system.inputs);
    const auto slope = [&](const std::vector<double>& x, int64_t k) {
      std::vector<double> result(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < n; ++j) sum += system.A[static_cast<size_t>(i * n + j)] * x[static_cast<size_t>(j)];
        for (int64_t j = 0; j < system.inputs; ++j)
          sum += system.B[static_cast<size_t>(i * system.inputs + j)] * u[static_cast<size_t>(k * system.inputs + j)];
        result[static_cast<size_t>(i)] = sum;
      }
      return result;
    };
    const auto along = [](std::vector<double> x, double step, const std::vector<double>& direction) {
      for (size_t i = 0; i < x.size(); ++i) x[i] += step * direction[i];
      return x;
    };
    std::vector<double> x(static_cast<size_t>(n)), expected;
    const double rate = largest(system.A) * static_cast<double>(n);
    const auto steps = static_cast<int64_t>(std::ceil(dt * rate / 0.005)) + 1;  // error of a step: (rate h)^5 / 120
    const double h = dt / static_cast<double>(steps);
    for (int64_t k = 0; k < t; ++k) {
      for (int64_t step = 0; step < steps; ++step) {
        const auto k1 = slope(x, k), k2 = slope(along(x, h / 2, k1), k), k3 = slope(along(x, h / 2, k2), k),
                   k4 = slope(along(x, h, k3), k);
        for (size_t i = 0; i < x.size(); ++i) x[i] += h / 6 * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]);
      }
      for (int64_t o = 0; o < system.outputs; ++o) {
        double y = 0;
        for (int64_t i = 0; i < n; ++i) y += system.C[static_cast<size_t>(o * n + i)] * x[static_cast<size_t>(i)];
        for (int64_t i = 0; i < system.inputs; ++i)
          y += system.D[static_cast<size_t>(o * system.inputs + i)] * u[static_cast<size_t>(k * system.inputs + i)];
        expected.push_back(y);
      }
    }
    expect_near(recurrence_from_zero(discretize(system, dt, Discretization::zero_order_hold()), u), expected, name);
  }
}

// The scalar system, by hand: K_l = C A_bar^l B_bar.
TEST_F(Lti, TheKernelBeginsWithCB) {
  const LinearSystem one{.n = 1, .A = {0.5}, .B = {3}, .C = {2}, .D = {7}};
  EXPECT_EQ(convolution_kernel(one, 4), (std::vector<double>{6, 3, 1.5, 0.75}));
  EXPECT_EQ(recurrence_from_zero(one, std::vector<double>{1, 0, 1}), (std::vector<double>{13, 3, 14.5}));
}

// An integrator has no inverse of A; (4) does not ask for one.
TEST_F(Lti, ZeroOrderHoldOfASingularMatrix) {
  const LinearSystem twice{.n = 2, .A = {0, 1, 0, 0}, .B = {0, 1}, .C = {1, 0}, .D = {0}};
  const LinearSystem found = discretize(twice, 0.5, Discretization::zero_order_hold());
  expect_near(found.A, {1, 0.5, 0, 1}, "A");
  expect_near(found.B, {0.125, 0.5}, "B");
}

TEST_F(Lti, WhatCannotBeDiscretizedIsAnError) {
  const auto message = [](double a, double dt, const Discretization& method) {
    try {
      discretize(LinearSystem{.n = 1, .A = {a}, .B = {1}, .C = {1}, .D = {0}}, dt, method);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  EXPECT_EQ(
      message(20, 0.1, Discretization::bilinear()),
      "bilinear with dt 0.1: I - 0.5 dt A is singular, since A has an eigenvalue near 20; take another dt, zoh or "
      "euler");
  EXPECT_NE(message(10, 0.1, Discretization::backward_euler()).find("is singular"), std::string::npos);
  EXPECT_NE(message(1e6, 1, Discretization::zero_order_hold()).find("past the range"), std::string::npos);
  EXPECT_NE(message(1e300, 1e300, Discretization::euler()).find("past the range"), std::string::npos);
  EXPECT_EQ(message(20, 0.1, Discretization::euler()), "none");
}

}  // namespace
}  // namespace ssm
