// Elementary functions for the SIMD kernels, f32, for any vector length: exp2, sigmoid, SiLU, softplus.
// Included once per target from inside HWY_NAMESPACE by the *_cpu.cpp files (see foreach_target.h of Highway).

#if defined(SSM_OPS_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_SIMD_MATH_INL_H_
#undef SSM_OPS_SIMD_MATH_INL_H_
#else
#define SSM_OPS_SIMD_MATH_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kLog2E = 1.44269504088896341f;

// The first `count` lanes, or all when count >= Lanes(d); the other lanes are 0. Nothing beyond `count` is touched:
// where the target's masked operations read or write whole vectors, the tail goes through a buffer.
template <class D>
HWY_INLINE hn::Vec<D> load_up_to(D d, const float* from, size_t count) {
  if (count >= hn::Lanes(d)) return hn::LoadU(d, from);
#if HWY_MEM_OPS_MIGHT_FAULT
  HWY_ALIGN float lanes[hn::MaxLanes(d)] = {};
  for (size_t i = 0; i < count; ++i) lanes[i] = from[i];
  return hn::Load(d, lanes);
#else
  return hn::MaskedLoad(hn::FirstN(d, count), d, from);
#endif
}

template <class D>
HWY_INLINE void store_up_to(D d, hn::Vec<D> value, float* to, size_t count) {
  if (count >= hn::Lanes(d)) return hn::StoreU(value, d, to);
#if HWY_MEM_OPS_MIGHT_FAULT
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  hn::Store(value, d, lanes);
  for (size_t i = 0; i < count; ++i) to[i] = lanes[i];
#else
  hn::BlendedStore(value, hn::FirstN(d, count), d, to);
#endif
}

// 2^p for p <= 0. Written 2^p = 2^i 2^f with f in [-1/2, 1/2]; 2^f = 1 + f Q(f) with Q interpolating (2^f - 1) / f at
// the six Chebyshev nodes of that interval: relative error 7.4e-8, mostly the rounding of its evaluation. The constant
// term is exactly 1, so that a slow decay (p near 0) keeps its distance from 1; a state that lives for a million tokens
// sees nothing else. Below p = -126 the result stays 2^-126, not 0: next to a state of any size that is nothing.
//
// p is rounded by adding 1.5 * 2^23, whose last mantissa bit weighs 1: the sum's low bits are then i, ready to be
// shifted into the exponent. A NaN passes the clamp (it is not < -126) and the sum, and shifts out to 0: it stays NaN.
template <class D>
HWY_INLINE hn::Vec<D> exp2_nonpositive(D d, hn::Vec<D> p) {
  const hn::RebindToUnsigned<D> bits;
  const auto lowest = hn::Set(d, -126.0f), round = hn::Set(d, 12582912.0f);
#if HWY_TARGET == HWY_SCALAR
  p = hn::IfThenElse(hn::Lt(p, lowest), lowest, p);
#else
  p = hn::Max(lowest, p);  // of a NaN and a number the second argument; one instruction less than to compare
#endif
  const auto i = hn::Add(p, round);
  const auto f = hn::Sub(p, hn::Sub(i, round));
  auto r = hn::MulAdd(hn::Set(d, 1.54531634e-4f), f, hn::Set(d, 1.33908633e-3f));
  r = hn::MulAdd(r, f, hn::Set(d, 9.61808302e-3f));
  r = hn::MulAdd(r, f, hn::Set(d, 5.55035695e-2f));
  r = hn::MulAdd(r, f, hn::Set(d, 2.40226507e-1f));
  r = hn::MulAdd(r, f, hn::Set(d, 6.93147182e-1f));
  r = hn::MulAdd(r, f, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(bits, r), hn::ShiftLeft<23>(hn::BitCast(bits, i))));
}

// 1 / (1 + e^-v), through e^-|v| so that nothing overflows.
template <class D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> v) {
  const auto one = hn::Set(d, 1.0f);
  const auto e = exp2_nonpositive(d, hn::Mul(hn::Neg(hn::Abs(v)), hn::Set(d, kLog2E)));
  const auto inverse = hn::Div(one, hn::Add(one, e));
  return hn::IfThenElse(hn::Lt(v, hn::Zero(d)), hn::Mul(e, inverse), inverse);
}

template <class D>
HWY_INLINE hn::Vec<D> silu(D d, hn::Vec<D> v) {
  return hn::Mul(v, sigmoid(d, v));
}

// log(1 + e^v) = max(v, 0) + log(1 + u) with u = e^-|v| in (0, 1], and log(1 + u) = u P(u): P interpolates at ten
// Chebyshev nodes, relative error 1.4e-7 with rounding, also where the result is tiny. Above 20 the second term is
// below half an ulp of the first, so this is v itself there, as in the reference implementation. NaN stays NaN through
// u.
template <class D>
HWY_INLINE hn::Vec<D> softplus(D d, hn::Vec<D> v) {
  const auto u = exp2_nonpositive(d, hn::Mul(hn::Neg(hn::Abs(v)), hn::Set(d, kLog2E)));
  auto p = hn::MulAdd(hn::Set(d, -3.17605701e-3f), u, hn::Set(d, 1.95425265e-2f));
  p = hn::MulAdd(p, u, hn::Set(d, -5.63736111e-2f));
  p = hn::MulAdd(p, u, hn::Set(d, 1.05436236e-1f));
  p = hn::MulAdd(p, u, hn::Set(d, -1.52696669e-1f));
  p = hn::MulAdd(p, u, hn::Set(d, 1.96632743e-1f));
  p = hn::MulAdd(p, u, hn::Set(d, -2.49516159e-1f));
  p = hn::MulAdd(p, u, hn::Set(d, 3.33297104e-1f));
  p = hn::MulAdd(p, u, hn::Set(d, -4.99998927e-1f));
  p = hn::MulAdd(p, u, hn::Set(d, 1.0f));
  return hn::MulAdd(p, u, hn::Max(v, hn::Zero(d)));
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
