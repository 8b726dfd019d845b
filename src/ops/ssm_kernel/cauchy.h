// The Cauchy products of ssm_kernel for one channel, in double, over all nodes of its circle: SIMD in cauchy_cpu.cpp.
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace ssm::cpu {

// Real and imaginary parts apart, as vectors of lanes want them.
struct ComplexArray {
  std::vector<double> re, im;
  explicit ComplexArray(int64_t count) : re(static_cast<size_t>(count)), im(static_cast<size_t>(count)) {}
  int64_t count() const { return static_cast<int64_t>(re.size()); }
  std::complex<double> operator[](int64_t i) const { return {re[static_cast<size_t>(i)], im[static_cast<size_t>(i)]}; }
  void put(int64_t i, std::complex<double> value) {
    re[static_cast<size_t>(i)] = value.real();
    im[static_cast<size_t>(i)] = value.imag();
  }
};

// The four pairs of (5): each its own factor v, its own sum over modes.
inline constexpr int kPairs = 4;
enum Pair { kCB, kCG, kFB, kFG };
using FourArrays = std::vector<ComplexArray>;  // kPairs of them

// s_pair(zeta_j) = sum_k v_pair,k / (1 - zeta_j a_k): (5). The number of nodes is a multiple of kNodeMultiple.
inline constexpr int64_t kNodeMultiple = 8;
void cauchy_forward(const ComplexArray& a, const FourArrays& v, const ComplexArray& zeta, FourArrays& s);
// From ds to dv and da: (9) and (10).
void cauchy_backward(const ComplexArray& a, const FourArrays& v, const ComplexArray& zeta, const FourArrays& ds,
                     FourArrays& dv, ComplexArray& da);

}  // namespace ssm::cpu
