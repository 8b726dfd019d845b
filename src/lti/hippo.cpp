// The closed forms of HiPPO's and S4D's matrices, and the eigenvectors that make the first of them diagonal.
#include "lti/hippo.h"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "lti/matrix.h"

namespace ssm {
namespace {

using Complex = std::complex<double>;

constexpr int kMeasureCount = 3;
constexpr std::string_view kMeasureNames[] = {"legs", "legt", "fout"};

size_t index(int64_t i) { return static_cast<size_t>(i); }
double scale(int64_t i) { return std::sqrt(2.0 * static_cast<double>(i) + 1); }  // of the i-th Legendre polynomial

// (10)
Hippo legs(int64_t n) {
  Hippo result{.n = n, .A = std::vector<double>(index(n * n))};
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < i; ++k) result.A[index(i * n + k)] = -scale(i) * scale(k);
    result.A[index(i * n + i)] = -static_cast<double>(i + 1);
    result.B.push_back(scale(i));
    result.P.push_back(scale(i) * std::sqrt(0.5));
  }
  return result;
}

// (11)
Hippo legt(int64_t n) {
  Hippo result{.n = n, .rank = 2, .P = std::vector<double>(index(2 * n))};
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < n; ++k)
      result.A.push_back(-0.5 * scale(i) * scale(k) * (k <= i || (i - k) % 2 == 0 ? 1 : -1));
    result.B.push_back(0.5 * scale(i));
    result.P[index((i % 2 == 0 ? n : 0) + i)] = scale(i) * std::sqrt(0.5);  // odd entries, then even ones
  }
  return result;
}

// (12)
Hippo fout(int64_t n) {
  Hippo result{.n = n, .A = std::vector<double>(index(n * n))};
  for (int64_t i = 0; i < n; ++i) result.B.push_back(i == 0 ? 1 : i % 2 == 0 ? std::sqrt(2.0) : 0);
  result.P = result.B;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < n; ++k) result.A[index(i * n + k)] = -result.B[index(i)] * result.B[index(k)];
  for (int64_t i = 0; i < n; i += 2) {
    const double frequency = M_PI * static_cast<double>(i / 2);
    result.A[index(i * n + i + 1)] -= frequency;
    result.A[index((i + 1) * n + i)] += frequency;
  }
  return result;
}

// Eigenvectors of a skew-symmetric S, those of the Hermitian -i S; the eigenvalues of S are i times the frequencies.
void skew_modes(const Matrix& S, Eigen::VectorXd& frequencies, Eigen::MatrixXcd& V) {
  const Eigen::MatrixXcd hermitian = S.cast<Complex>() * Complex(0, -1);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXcd> solver(hermitian);
  require(solver.info() == Eigen::Success, "HiPPO of ", S.rows(), " states: its eigenvalues were not found");
  frequencies = solver.eigenvalues();
  V = solver.eigenvectors();
}

// FouT's rotations stand apart, two entries each, so nothing is to be solved; the pair that does not rotate has a
// frequency of zero twice, where a solver would return any two vectors.
void rotation_modes(int64_t n, Eigen::VectorXd& frequencies, Eigen::MatrixXcd& V) {
  frequencies.resize(n);
  V = Eigen::MatrixXcd::Zero(n, n);
  const double half = std::sqrt(0.5);
  for (int64_t pair = 0; pair < n / 2; ++pair) {
    const int64_t slow = n / 2 - 1 - pair, fast = n / 2 + pair;  // columns of -frequency and of +frequency
    frequencies(slow) = -M_PI * static_cast<double>(pair);
    frequencies(fast) = M_PI * static_cast<double>(pair);
    V(2 * pair, slow) = V(2 * pair, fast) = half;
    V(2 * pair + 1, slow) = Complex(0, half);
    V(2 * pair + 1, fast) = Complex(0, -half);
  }
}

}  // namespace

std::optional<Measure> measure_named(std::string_view name) {
  for (int i = 0; i < kMeasureCount; ++i)
    if (kMeasureNames[i] == name) return static_cast<Measure>(i);
  return std::nullopt;
}

std::string_view name_of(Measure measure) { return kMeasureNames[static_cast<int>(measure)]; }

Hippo hippo(Measure measure, int64_t n) {
  require(n >= 1, "HiPPO of ", n, " states, expected at least 1");
  require(measure != Measure::fout || n % 2 == 0, "fout of ", n, " states, expected an even number: a sine a cosine");
  switch (measure) {
    case Measure::legs: return legs(n);
    case Measure::legt: return legt(n);
    case Measure::fout: break;
  }
  return fout(n);
}

Dplr diagonal_plus_low_rank(Measure measure, int64_t n) {
  const Hippo system = hippo(measure, n);
  const auto A = as_matrix(system.A, n, n), P = as_matrix(system.P, system.rank, n);
  const Eigen::VectorXd B = Eigen::Map<const Eigen::VectorXd>(system.B.data(), n);
  const Matrix normal = A + P.transpose() * P;  // (14): a multiple of I plus a skew-symmetric matrix
  const double decay = normal.diagonal().mean();
  Eigen::VectorXd frequencies;
  Eigen::MatrixXcd V;
  if (measure == Measure::fout)
    rotation_modes(n, frequencies, V);
  else
    skew_modes(0.5 * (normal - normal.transpose()), frequencies, V);

  // The phase, and conjugate pairs to the last bit.
  for (int64_t k = 0; k < n / 2; ++k) {
    const Complex projection = V.col(k).dot(B.cast<Complex>());
    if (std::abs(projection) > 0) V.col(k) *= projection / std::abs(projection);
    V.col(n - 1 - k) = V.col(k).conjugate();
    frequencies(n - 1 - k) = -frequencies(k);
  }
  if (n % 2 == 1) {  // the mode in the middle is real
    const Complex projection = V.col(n / 2).dot(B.cast<Complex>());
    if (std::abs(projection) > 0) V.col(n / 2) *= projection / std::abs(projection);
    V.col(n / 2) = V.col(n / 2).real().cast<Complex>().eval();
    frequencies(n / 2) = 0;
  }

  Dplr result{.n = n, .rank = system.rank};
  const Eigen::VectorXcd B_modes = V.adjoint() * B.cast<Complex>();
  const Eigen::MatrixXcd P_modes = V.adjoint() * P.transpose().cast<Complex>();  // (n, rank)
  for (int64_t k = 0; k < n; ++k) {
    result.Lambda.emplace_back(decay, frequencies(k));
    result.B.push_back(B_modes(k));
  }
  for (int64_t r = 0; r < system.rank; ++r)
    for (int64_t k = 0; k < n; ++k) result.P.push_back(P_modes(k, r));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < n; ++k) result.V.push_back(V(i, k));
  return result;
}

const std::vector<std::string> kDiagonalStarts = {"diag-lin",  "diag-inv",  "diag-inv2",
                                                  "diag-quad", "diag-real", "diag-legs"};

DiagonalModes diagonal_modes(std::string_view name, int64_t n) {
  const bool known = std::find(kDiagonalStarts.begin(), kDiagonalStarts.end(), name) != kDiagonalStarts.end();
  DCHECK(known);
  static_cast<void>(known);
  const bool real = name == "diag-real";
  require(n >= 1 && (real || n % 2 == 0), name, " of ", n, " states, expected ",
          real ? "at least 1" : "an even number: they come in conjugate pairs");
  DiagonalModes modes;
  const auto states = static_cast<double>(n);
  for (int64_t i = 0; i < (real ? n : n / 2); ++i) {
    const auto k = static_cast<double>(i);
    modes.decay.push_back(real ? k + 1 : 0.5);
    modes.B.push_back(1);
    if (name == "diag-lin") modes.frequency.push_back(M_PI * k);
    if (name == "diag-inv") modes.frequency.push_back(states / M_PI * (states / (2 * k + 1) - 1));
    if (name == "diag-inv2") modes.frequency.push_back(states / M_PI * (states / (k + 1) - 1));
    if (name == "diag-quad") modes.frequency.push_back((1 + 2 * k) * (1 + 2 * k) / M_PI);
    if (real) modes.frequency.push_back(0);
  }
  if (name == "diag-legs") {
    const Dplr system = diagonal_plus_low_rank(Measure::legs, n);
    for (int64_t i = 0; i < n / 2; ++i) {
      modes.frequency.push_back(-system.Lambda[index(i)].imag());
      modes.B[index(i)] = system.B[index(i)].real();
    }
  }
  return modes;
}

}  // namespace ssm
