// Complex numbers of f32 and f64 for kernels, as far as linear state space models want them.
#pragma once

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
template <class T>
__device__ __forceinline__ Complex<T> inverse(Complex<T> a) {
  const T scale = T(1) / norm(a);
  return {a.re * scale, -a.im * scale};
}

}  // namespace ssm::cuda
