// Where the matrices of structured state space models start: HiPPO-LegS as diagonal plus rank one (Gu et al. 2021,
// "Efficiently modeling long sequences with structured state spaces", appendix C), and the diagonal ones of S4D (Gu et
// al. 2022, "On the parameterization and initialization of diagonal state space models", section 4). A is negative;
// one mode of each conjugate pair is kept, the one with Im <= 0.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "core/params.h"

namespace ssm {

// LegS of n states: A + P P^T = -1/2 + S with S skew-symmetric, whose eigenvectors V, unitary, make it diagonal:
//   Lambda = -1/2 - i frequency,  V* P = p,  V* B = sqrt(2) p.
// An eigenvector's phase is free. It is chosen here to make p real and positive, which makes V* B so too.
struct LegsModes {
  std::vector<double> frequency;  // (n / 2), descending
  std::vector<double> p;          // (n / 2)
};
LegsModes legs_modes(int64_t n);

// The same, made when first asked for: a model that is read from a file never asks.
class LazyLegs {
 public:
  explicit LazyLegs(int64_t n) : n_(n) {}
  const LegsModes& get() {
    std::call_once(once_, [this] { modes_ = legs_modes(n_); });
    return modes_;
  }

 private:
  int64_t n_;
  std::once_flag once_;
  LegsModes modes_;
};

// S4D's: diag-lin, diag-inv, diag-inv2, diag-quad, diag-real, diag-rand, diag-legs, and diag: half of the copies inv,
// the others lin.
extern const std::vector<std::string> kDiagonalInits;
// -Re A and -Im A of (copies, modes) from `n` states; modes is n / 2, or n for a real A.
struct DiagonalInit {
  Init decay, frequency;
  bool legs = false;  // B is LegS's, not 1
};
DiagonalInit diagonal_init(std::string_view name, int64_t n, int64_t copies, int64_t modes,
                           const std::shared_ptr<LazyLegs>& legs);

}  // namespace ssm
