// HiPPO's matrices against what they are made from: the functions of their basis, the projection of a signal on them,
// the identities of their normal and diagonal forms, numbers of the papers.
#include "lti/hippo.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "lti/linear_system.h"
#include "lti/memory.h"

namespace ssm {
namespace {

using Complex = std::complex<double>;

const std::vector<Measure> kMeasures = {Measure::legs, Measure::legt, Measure::fout};

size_t at(int64_t i, int64_t k, int64_t n) { return static_cast<size_t>(i * n + k); }

void nothing() {}

// P_n by its recursion, written out on its own.
double legendre(int64_t n, double z) {
  if (n == 0) return 1;
  double last = 1, now = z;
  for (int64_t k = 1; k < n; ++k) {
    const double next =
        (static_cast<double>(2 * k + 1) * z * now - static_cast<double>(k) * last) / static_cast<double>(k + 1);
    last = now;
    now = next;
  }
  return now;
}

TEST(Hippo, EntriesAreThoseOfThePapers) {
  const Hippo legs = hippo(Measure::legs, 3);
  const double s1 = std::sqrt(3.0), s2 = std::sqrt(5.0);
  const std::vector<double> A = {-1, 0, 0, -s1, -2, 0, -s2, -s1 * s2, -3};
  for (size_t i = 0; i < A.size(); ++i) EXPECT_NEAR(legs.A[i], A[i], 1e-15);
  const Hippo legt = hippo(Measure::legt, 3);
  const std::vector<double> T = {-0.5,          0.5 * s1,  -0.5 * s2,      -0.5 * s1, -1.5,
                                 0.5 * s1 * s2, -0.5 * s2, -0.5 * s1 * s2, -2.5};
  for (size_t i = 0; i < T.size(); ++i) EXPECT_NEAR(legt.A[i], T[i], 1e-15);
  const Hippo fout = hippo(Measure::fout, 4);
  const double r = std::sqrt(2.0);
  const std::vector<double> F = {-1, 0, -r, 0, 0, 0, 0, 0, -r, 0, -2, -M_PI, 0, 0, M_PI, 0};
  for (size_t i = 0; i < F.size(); ++i) EXPECT_NEAR(fout.A[i], F[i], 1e-15);
  EXPECT_EQ(fout.B, (std::vector<double>{1, 0, r, 0}));
}

// (13): e^(sA) B is what the state adds for an impulse s ago.
TEST(Hippo, TheImpulseResponseOfLegSIsItsWeightedBasis) {
  const int64_t n = 12;
  const Hippo legs = hippo(Measure::legs, n);
  const LinearSystem system{.n = n, .outputs = 0, .A = legs.A, .B = legs.B};
  for (const double s : {0.01, 0.3, 1.0, 4.0}) {
    const LinearSystem after = discretize(system, s, Discretization::zero_order_hold());
    for (int64_t i = 0; i < n; ++i) {
      double found = 0;
      for (int64_t k = 0; k < n; ++k) found += after.A[at(i, k, n)] * legs.B[static_cast<size_t>(k)];
      const double expected =
          std::exp(-s) * std::sqrt(2.0 * static_cast<double>(i) + 1) * legendre(i, 2 * std::exp(-s) - 1);
      EXPECT_NEAR(found, expected, 1e-11) << "mode " << i << " after " << s;
    }
  }
}

// (14): A + P P^T is a multiple of I plus a skew-symmetric matrix.
TEST(Hippo, LowRankMakesItNormal) {
  for (const Measure measure : kMeasures)
    for (const int64_t n : {2, 8, 64}) {
      const Hippo system = hippo(measure, n);
      const double decay = measure == Measure::legs ? -0.5 : 0;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < n; ++k) {
          double sum = system.A[at(i, k, n)] + system.A[at(k, i, n)];
          for (int64_t r = 0; r < system.rank; ++r) sum += 2 * system.P[at(r, i, n)] * system.P[at(r, k, n)];
          EXPECT_NEAR(sum, i == k ? 2 * decay : 0, 1e-12 * static_cast<double>(n)) << name_of(measure) << n;
        }
    }
}

// (16), and V is unitary.
TEST(Hippo, DiagonalPlusLowRankIsTheSameSystem) {
  for (const Measure measure : kMeasures)
    for (const int64_t n : {1, 2, 3, 8, 33, 64}) {
      if (measure == Measure::fout && n % 2 == 1) continue;
      const Hippo system = hippo(measure, n);
      const Dplr dplr = diagonal_plus_low_rank(measure, n);
      const double bound = 1e-13 * static_cast<double>(n * n);
      for (int64_t i = 0; i < n; ++i) {
        Complex b = 0;
        for (int64_t k = 0; k < n; ++k) {
          Complex a = 0, identity = 0;
          std::vector<Complex> left(static_cast<size_t>(dplr.rank)), right(left);
          for (int64_t m = 0; m < n; ++m) {
            const Complex v = dplr.V[at(i, m, n)], w = std::conj(dplr.V[at(k, m, n)]);
            a += v * dplr.Lambda[static_cast<size_t>(m)] * w;
            identity += v * w;
            for (int64_t r = 0; r < dplr.rank; ++r) {
              left[static_cast<size_t>(r)] += v * dplr.P[at(r, m, n)];
              right[static_cast<size_t>(r)] += std::conj(dplr.P[at(r, m, n)]) * w;
            }
          }
          for (size_t r = 0; r < left.size(); ++r) a -= left[r] * right[r];
          ASSERT_LT(std::abs(a - system.A[at(i, k, n)]), bound)
              << name_of(measure) << " " << n << ": " << i << ", " << k;
          ASSERT_LT(std::abs(identity - (i == k ? 1.0 : 0.0)), bound);
          b += dplr.V[at(i, k, n)] * dplr.B[static_cast<size_t>(k)];
        }
        ASSERT_LT(std::abs(b - system.B[static_cast<size_t>(i)]), bound) << name_of(measure) << " " << n << ": B " << i;
      }
      for (int64_t k = 0; k < n; ++k) {
        const auto mode = static_cast<size_t>(k), twin = static_cast<size_t>(n - 1 - k);
        EXPECT_EQ(dplr.Lambda[mode], std::conj(dplr.Lambda[twin]));
        if (k > 0) {
          EXPECT_LE(dplr.Lambda[mode - 1].imag(), dplr.Lambda[mode].imag());
        }
        EXPECT_GT(dplr.B[mode].real(), 0) << name_of(measure) << " " << n << ": " << k;
        EXPECT_LT(std::abs(dplr.B[mode].imag()), bound);
        if (measure == Measure::legs) {
          EXPECT_LT(std::abs(dplr.P[mode] - dplr.B[mode] * std::sqrt(0.5)), bound);
        }
      }
    }
}

TEST(Hippo, DiagonalStarts) {
  const auto frequencies = [](const char* name) { return diagonal_modes(name, 8).frequency; };
  const auto expect = [](const std::vector<double>& found, const std::vector<double>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-12);
  };
  expect(frequencies("diag-lin"), {0, M_PI, 2 * M_PI, 3 * M_PI});
  expect(frequencies("diag-inv"), {56 / M_PI, 40 / (3 * M_PI), 24 / (5 * M_PI), 8 / (7 * M_PI)});
  expect(frequencies("diag-inv2"), {56 / M_PI, 24 / M_PI, 40 / (3 * M_PI), 8 / M_PI});
  expect(frequencies("diag-quad"), {1 / M_PI, 9 / M_PI, 25 / M_PI, 49 / M_PI});
  expect(diagonal_modes("diag-lin", 8).decay, {0.5, 0.5, 0.5, 0.5});
  expect(diagonal_modes("diag-real", 3).decay, {1, 2, 3});
  expect(diagonal_modes("diag-real", 3).frequency, {0, 0, 0});
  // LegS of two states: -1/2 and the rotation sqrt(3)/2; B is (1, sqrt 3) seen along (1, -+i)/sqrt 2.
  const DiagonalModes legs = diagonal_modes("diag-legs", 2);
  expect(legs.decay, {0.5});
  expect(legs.frequency, {std::sqrt(3.0) / 2});
  expect(legs.B, {std::sqrt(2.0)});
  EXPECT_THROW(diagonal_modes("diag-lin", 3), Error);
  EXPECT_THROW(hippo(Measure::fout, 3), Error);
  EXPECT_THROW(hippo(Measure::legs, 0), Error);
}

// Memory --------------------------------------------------------------------------------------------------------------

// Smooth, not periodic, and with no symmetry that would spare a basis half of its work.
std::vector<double> test_signal(int64_t samples) {
  std::vector<double> signal;
  for (int64_t k = 0; k < samples; ++k) {
    const double time = static_cast<double>(k) / static_cast<double>(samples);
    signal.push_back(std::sin(9 * time) + 0.5 * std::cos(23 * time + 1) + time);
  }
  return signal;
}

double error_of(const Memory& memory, const std::vector<double>& signal, int64_t count) {
  const std::vector<double> state = remember(memory, signal, nothing);
  const std::vector<double> past = recall(memory, state, static_cast<int64_t>(signal.size()), count);
  double sum = 0, scale = 0;
  for (size_t i = 0; i < past.size(); ++i) {
    const double value = signal[signal.size() - past.size() + i];
    const double age = static_cast<double>(past.size() - i) - 0.5;
    const double weight = memory.measure == Measure::legs && memory.window > 0 ? std::exp(-age / memory.window) : 1;
    sum += weight * (past[i] - value) * (past[i] - value);
    scale += weight * value * value;
  }
  return std::sqrt(sum / scale);
}

TEST(Memory, ErrorFallsWithTheNumberOfStates) {
  const std::vector<double> signal = test_signal(3000);
  // Samples are constant pieces: what a smooth basis makes of their steps is the floor.
  constexpr double kFloor = 1e-5;
  const auto falls = [&](Measure measure, double window, int64_t count, double last) {
    double before = INFINITY;
    for (const int64_t n : {4, 8, 16, 32}) {
      const double error = error_of({.measure = measure, .n = n, .window = window}, signal, count);
      EXPECT_LT(error, std::max(before, kFloor)) << name_of(measure) << ", window " << window << ", n " << n;
      before = error;
    }
    EXPECT_LT(before, last) << name_of(measure) << ", window " << window;
  };
  falls(Measure::legs, 0, 3000, 0.005);
  falls(Measure::legs, 500, 3000, 0.05);
  falls(Measure::legt, 1000, 1000, 0.005);
  falls(Measure::fout, 1000, 1000, 0.15);  // a series of sines whose ends do not meet falls like 1/n
}

// (20) makes the state the projection of the whole past; its integrals are sums over short pieces of constant samples.
TEST(Memory, ScaledLegSIsTheProjection) {
  const int64_t n = 8, samples = 4000, fine = 8;
  const std::vector<double> signal = test_signal(samples);
  const std::vector<double> state = remember({.measure = Measure::legs, .n = n}, signal, nothing);
  for (int64_t i = 0; i < n; ++i) {
    double expected = 0;
    for (int64_t k = 0; k < samples * fine; ++k) {
      const double share = (static_cast<double>(k) + 0.5) / static_cast<double>(samples * fine);
      expected += signal[static_cast<size_t>(k / fine)] * legendre(i, 2 * share - 1);
    }
    expected *= std::sqrt(2.0 * static_cast<double>(i) + 1) / static_cast<double>(samples * fine);
    EXPECT_NEAR(state[static_cast<size_t>(i)], expected, 1e-4) << i;
  }
}

// A constant is the first function of every basis.
TEST(Memory, AConstantIsRemembered) {
  const std::vector<double> signal(20000, 2.5);
  for (const Memory& memory : {Memory{Measure::legs, 6, 0}, Memory{Measure::legs, 6, 300},
                               Memory{Measure::legt, 6, 300}, Memory{Measure::fout, 6, 300}})
    for (const double value : recall(memory, remember(memory, signal, nothing), 20000, 200))
      EXPECT_NEAR(value, 2.5, 1e-6) << name_of(memory.measure) << " " << memory.window;
}

TEST(Memory, MayBeInterrupted) {
  const std::vector<double> signal = test_signal(9000);
  const auto stop = [] { throw Error("stopped"); };
  EXPECT_THROW(remember({.measure = Measure::legs, .n = 4}, signal, stop), Error);
  EXPECT_THROW(remember({.measure = Measure::legt, .n = 4, .window = 100}, signal, stop), Error);
}

}  // namespace
}  // namespace ssm
