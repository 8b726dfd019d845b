// HiPPO: matrices whose state is a sketch of the input's past, its coefficients in an orthonormal basis (Gu et al.
// 2020, "HiPPO: recurrent memory with optimal polynomial projections"); their normal plus low-rank form, by which S4
// computes (Gu et al. 2021, "Efficiently modeling long sequences with structured state spaces", appendix C); and the
// diagonal matrices of S4D (Gu et al. 2022, "On the parameterization and initialization of diagonal state space
// models", section 4). A is negative (stable) throughout. Numbers of equations are those of README.md.
#pragma once

#include <complex>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ssm {

enum class Measure {
  legs,  // Legendre polynomials, the past weighted with e^(-s): all of it, fading
  legt,  // Legendre polynomials over a window of the last two units of time
  fout,  // Fourier series over the same window; n is even
};
std::optional<Measure> measure_named(std::string_view name);
std::string_view name_of(Measure measure);

// x' = A x + B u; A + sum over P of p p^T is normal (14).
struct Hippo {
  int64_t n = 0, rank = 1;
  std::vector<double> A;  // (n, n)
  std::vector<double> B;  // (n)
  std::vector<double> P;  // (rank, n)
};
Hippo hippo(Measure measure, int64_t n);

// The same system in the basis V of A + P P^T's eigenvectors: diagonal plus low rank,
//   A = V (diag(Lambda) - P P*) V*,   B = V B_modes                                     (16)
// Eigenvalues in ascending order of Im: the first half of the modes is the half that is kept where the system is real.
// A mode's phase makes its B real and positive, and with LegS its P too.
struct Dplr {
  int64_t n = 0, rank = 1;
  std::vector<std::complex<double>> Lambda;  // (n)
  std::vector<std::complex<double>> P;       // (rank, n), V* P
  std::vector<std::complex<double>> B;       // (n), V* B
  std::vector<std::complex<double>> V;       // (n, n), unitary, a mode a column
};
Dplr diagonal_plus_low_rank(Measure measure, int64_t n);

// Diagonal starts of S4D: diag-lin, diag-inv, diag-inv2, diag-quad, diag-real, and diag-legs, which is LegS without its
// low rank. Eigenvalues -decay - i frequency, of which one of each conjugate pair stands here: n / 2 of them, or n real
// ones with diag-real; and B: 1, or LegS's.
struct DiagonalModes {
  std::vector<double> decay, frequency, B;
};
extern const std::vector<std::string> kDiagonalStarts;
DiagonalModes diagonal_modes(std::string_view name, int64_t n);

}  // namespace ssm
