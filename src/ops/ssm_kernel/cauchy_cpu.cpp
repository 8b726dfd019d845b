// The Cauchy products of ssm_kernel with SIMD over the nodes of the circle, in double. Forward a vector of nodes meets
// all modes with its sums in registers, backward a mode meets all nodes. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/ssm_kernel/cauchy_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/ssm_kernel/cauchy.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<double>;
using Vec = hn::Vec<Tag>;

struct Number {
  Vec re, im;
};

HWY_INLINE Number load(const ComplexArray& from, int64_t i) {
  return {hn::LoadU(Tag(), from.re.data() + i), hn::LoadU(Tag(), from.im.data() + i)};
}
HWY_INLINE Number same(const ComplexArray& from, int64_t i) {
  return {hn::Set(Tag(), from.re[static_cast<size_t>(i)]), hn::Set(Tag(), from.im[static_cast<size_t>(i)])};
}
HWY_INLINE void add_product(const Number& a, const Number& b, Number& to) {
  to.re = hn::NegMulAdd(a.im, b.im, hn::MulAdd(a.re, b.re, to.re));
  to.im = hn::MulAdd(a.im, b.re, hn::MulAdd(a.re, b.im, to.im));
}
HWY_INLINE void add_conjugate_product(const Number& a, const Number& b, Number& to) {  // conj(a) b
  to.re = hn::MulAdd(a.im, b.im, hn::MulAdd(a.re, b.re, to.re));
  to.im = hn::NegMulAdd(a.im, b.re, hn::MulAdd(a.re, b.im, to.im));
}
HWY_INLINE Number zero() { return {hn::Zero(Tag()), hn::Zero(Tag())}; }

// 1 / (1 - zeta a)
HWY_INLINE Number resolvent(const Number& zeta, const Number& a) {
  const Vec one = hn::Set(Tag(), 1.0);
  const Vec re = hn::MulAdd(zeta.im, a.im, hn::NegMulAdd(zeta.re, a.re, one));
  const Vec minus_im = hn::MulAdd(zeta.re, a.im, hn::Mul(zeta.im, a.re));
  const Vec inverse = hn::Div(one, hn::MulAdd(minus_im, minus_im, hn::Mul(re, re)));
  return {hn::Mul(re, inverse), hn::Mul(minus_im, inverse)};
}

void cauchy_forward(const ComplexArray& a, const FourArrays& v, const ComplexArray& zeta, FourArrays& s) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  for (int64_t j = 0; j < zeta.count(); j += lanes) {
    const Number node = load(zeta, j);
    Number sums[kPairs] = {zero(), zero(), zero(), zero()};
    for (int64_t k = 0; k < a.count(); ++k) {
      const Number d = resolvent(node, same(a, k));
      for (int pair = 0; pair < kPairs; ++pair) add_product(same(v[static_cast<size_t>(pair)], k), d, sums[pair]);
    }
    for (int pair = 0; pair < kPairs; ++pair) {
      auto& to = s[static_cast<size_t>(pair)];
      hn::StoreU(sums[pair].re, Tag(), to.re.data() + j);
      hn::StoreU(sums[pair].im, Tag(), to.im.data() + j);
    }
  }
}

void cauchy_backward(const ComplexArray& a, const FourArrays& v, const ComplexArray& zeta, const FourArrays& ds,
                     FourArrays& dv, ComplexArray& da) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  const auto total = [](const Number& sums) {
    return std::complex<double>(hn::GetLane(hn::SumOfLanes(Tag(), sums.re)),
                                hn::GetLane(hn::SumOfLanes(Tag(), sums.im)));
  };
  for (int64_t k = 0; k < a.count(); ++k) {
    const Number mode = same(a, k);
    Number sums[kPairs] = {zero(), zero(), zero(), zero()}, sum_a = zero();
    for (int64_t j = 0; j < zeta.count(); j += lanes) {
      const Number node = load(zeta, j), d = resolvent(node, mode);
      Number dd = zero(), zeta_d = zero(), slope = zero();
      for (int pair = 0; pair < kPairs; ++pair) {
        const Number gradient = load(ds[static_cast<size_t>(pair)], j);
        add_conjugate_product(d, gradient, sums[pair]);  // (9)
        add_conjugate_product(same(v[static_cast<size_t>(pair)], k), gradient, dd);
      }
      add_product(node, d, zeta_d);
      add_product(zeta_d, d, slope);
      add_conjugate_product(slope, dd, sum_a);  // (10)
    }
    for (int pair = 0; pair < kPairs; ++pair) dv[static_cast<size_t>(pair)].put(k, total(sums[pair]));
    da.put(k, total(sum_a));
  }
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(cauchy_forward);
HWY_EXPORT(cauchy_backward);

void cauchy_forward(const ComplexArray& a, const FourArrays& v, const ComplexArray& zeta, FourArrays& s) {
  HWY_DYNAMIC_DISPATCH(cauchy_forward)(a, v, zeta, s);
}

void cauchy_backward(const ComplexArray& a, const FourArrays& v, const ComplexArray& zeta, const FourArrays& ds,
                     FourArrays& dv, ComplexArray& da) {
  HWY_DYNAMIC_DISPATCH(cauchy_backward)(a, v, zeta, ds, dv, da);
}
}  // namespace ssm::cpu
#endif
