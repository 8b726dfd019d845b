// LegS by a Hermitian eigen-decomposition (LAPACK, which comes with OpenBLAS), and the closed forms of S4D.
#include "mixers/hippo.h"

#include <cmath>
#include <complex>

#include "core/error.h"

// LAPACK's eigenvalues, ascending, and eigenvectors of a Hermitian matrix, column-major.
extern "C" void zheev_(const char* job, const char* triangle, const int* n, std::complex<double>* a, const int* stride,
                       double* eigenvalues, std::complex<double>* work, const int* work_size, double* real_work,
                       int* info);

namespace ssm {

LegsModes legs_modes(int64_t n) {
  const auto count = static_cast<size_t>(n);
  const auto P = [](size_t i) { return std::sqrt(static_cast<double>(i) + 0.5); };
  // -i S; S_ij = -P_i P_j below the diagonal.
  std::vector<std::complex<double>> matrix(count * count);
  for (size_t column = 0; column < count; ++column)
    for (size_t row = column + 1; row < count; ++row) matrix[column * count + row] = {0, P(row) * P(column)};
  std::vector<double> eigenvalues(count), real_work(3 * count);
  std::vector<std::complex<double>> work(64 * count);
  const int size = static_cast<int>(n), work_size = static_cast<int>(work.size());
  int info = 0;
  zheev_("V", "L", &size, matrix.data(), &size, eigenvalues.data(), work.data(), &work_size, real_work.data(), &info);
  require(info == 0, "LegS of ", n, " states: its eigenvalues were not found (LAPACK's zheev says ", info, ")");
  LegsModes modes;
  for (size_t k = 0; k < count / 2; ++k) {  // the negative half, the fastest first
    std::complex<double> projection = 0;
    for (size_t row = 0; row < count; ++row) projection += std::conj(matrix[k * count + row]) * P(row);
    modes.frequency.push_back(-eigenvalues[k]);
    modes.p.push_back(std::abs(projection));
  }
  return modes;
}

const std::vector<std::string> kDiagonalInits = {"diag-lin",  "diag-inv",  "diag-inv2", "diag-quad",
                                                 "diag-real", "diag-rand", "diag-legs", "diag"};

DiagonalInit diagonal_init(std::string_view name, int64_t n, int64_t copies, int64_t modes,
                           const std::shared_ptr<LazyLegs>& legs) {
  using Form = double (*)(double k, double n);
  const Form lin = [](double k, double) { return M_PI * k; },
             inv = [](double k, double states) { return states / M_PI * (states / (2 * k + 1) - 1); },
             inv2 = [](double k, double states) { return states / M_PI * (states / (k + 1) - 1); },
             quad = [](double k, double) { return (1 + 2 * k) * (1 + 2 * k) / M_PI; };
  // `form` for the first `many` copies, `rest` for the others.
  const auto closed = [=](Form form, int64_t many, Form rest) {
    return Init::custom([=](const Rng&, int64_t i) {
      return (i / modes < many ? form : rest)(static_cast<double>(i % modes), static_cast<double>(n));
    });
  };
  const Init half = Init::constant(0.5);
  if (name == "diag-lin") return {half, closed(lin, copies, lin)};
  if (name == "diag-inv") return {half, closed(inv, copies, inv)};
  if (name == "diag-inv2") return {half, closed(inv2, copies, inv2)};
  if (name == "diag-quad") return {half, closed(quad, copies, quad)};
  if (name == "diag") return {half, closed(inv, copies / 2, lin)};
  if (name == "diag-real")
    return {Init::custom([=](const Rng&, int64_t i) { return static_cast<double>(i % modes + 1); }), Init::constant(0)};
  if (name == "diag-rand")
    return {half,
            Init::custom([](const Rng& rng, int64_t i) { return std::exp(rng.normal(static_cast<uint64_t>(i))); })};
  if (name == "diag-legs")
    return {half,
            Init::custom([=](const Rng&, int64_t i) { return legs->get().frequency[static_cast<size_t>(i % modes)]; }),
            true};
  std::string known;
  for (const std::string& one : kDiagonalInits) known += (known.empty() ? "" : ", ") + one;
  throw Error("ssm_cfg: init is \"", name, "\", expected one of ", known);
}

}  // namespace ssm
