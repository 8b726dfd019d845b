// Complex numbers of f32 and f64 for kernels, as far as linear state space models want them.
#pragma once

#include <cstdint>

namespace ssm::cuda {

template <class T>
struct Complex {
  T re = 0, im = 0;
};

template <class T>
__device__ __forceinline__ Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> operator-(Complex<T> a, Complex<T> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> operator*(T a, Complex<T> b) {
  return {a * b.re, a * b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> conj(Complex<T> a) {
  return {a.re, -a.im};
}
template <class T>
__device__ __forceinline__ T norm(Complex<T> a) {
  return a.re * a.re + a.im * a.im;
}
// sum + a b; each part is two fused multiply-adds.
template <class T>
__device__ __forceinline__ Complex<T> multiply_add(Complex<T> a, Complex<T> b, Complex<T> sum) {
  return {fma(a.re, b.re, fma(-a.im, b.im, sum.re)), fma(a.re, b.im, fma(a.im, b.re, sum.im))};
}
template <class T>
__device__ __forceinline__ Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {fma(a.re, b.re, -a.im * b.im), fma(a.re, b.im, a.im * b.re)};
}
// Re(a b) + sum
template <class T>
__device__ __forceinline__ T real_multiply_add(Complex<T> a, Complex<T> b, T sum) {
  return fma(a.re, b.re, fma(-a.im, b.im, sum));
}
// Re(conj(a) b) + sum
template <class T>
__device__ __forceinline__ T real_conj_multiply_add(Complex<T> a, Complex<T> b, T sum) {
  return fma(a.re, b.re, fma(a.im, b.im, sum));
}
// sum + conj(a) b
template <class T>
__device__ __forceinline__ Complex<T> conj_multiply_add(Complex<T> a, Complex<T> b, Complex<T> sum) {
  return multiply_add(conj(a), b, sum);
}
// sum + v a, v real
template <class T>
__device__ __forceinline__ Complex<T> scale_add(T v, Complex<T> a, Complex<T> sum) {
  return {fma(v, a.re, sum.re), fma(v, a.im, sum.im)};
}
// a to the power n, n >= 0, by squaring.
template <class T>
__device__ __forceinline__ Complex<T> power(Complex<T> a, int64_t n) {
  Complex<T> result{1, 0};
  for (; n > 0; n >>= 1, a = a * a)
    if (n & 1) result = result * a;
  return result;
}
template <class T>
__device__ __forceinline__ Complex<T> inverse(Complex<T> a) {
  const T scale = T(1) / norm(a);
  return {a.re * scale, -a.im * scale};
}

}  // namespace ssm::cuda
