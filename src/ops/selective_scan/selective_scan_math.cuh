// The elementwise functions of the selective scan on a GPU, f32: one instruction of the special-function unit where
// there is one, the rest on the multiply-add pipe.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <type_traits>

namespace ssm::cuda {

inline constexpr float kLog2E = 1.44269504088896341f;

// States on the tape, and shares of sums: bf16 where the activations are, else f32.
template <class T>
using Rounded = std::conditional_t<std::is_same_v<T, __nv_bfloat16>, __nv_bfloat16, float>;

// 2^v, relative error 2^-22; a subnormal result is 0.
__device__ __forceinline__ float exp2_fast(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// 1 / v, relative error 2^-23.
__device__ __forceinline__ float reciprocal_fast(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// log(1 + e^v) = max(v, 0) + log(1 + u), u = e^-|v| in (0, 1]. The logarithm is u P(u): its relative error stays the
// same down to the smallest steps, where log2(1 + u) would have lost u to the rounding of 1 + u; and it leaves the
// special-function unit, which bounds the scan, to the exponentials. P interpolates log(1 + u) / u at Chebyshev points
// of [0, 1]: nine give 2e-7, seven 1.5e-6, for steps that came in bf16. -infinity gives 0, NaN gives NaN.
enum class Accuracy { full, bf16 };
template <Accuracy kAccuracy = Accuracy::full>
__device__ __forceinline__ float softplus_fast(float v) {
  const float u = exp2_fast(-fabsf(v) * kLog2E);
  float p;
  if constexpr (kAccuracy == Accuracy::full) {
    p = fmaf(0.00512610236f, u, -0.0290740654f);
    p = fmaf(p, u, 0.0775160864f);
    p = fmaf(p, u, -0.136022478f);
    p = fmaf(p, u, 0.190768808f);
    p = fmaf(p, u, -0.248353988f);
    p = fmaf(p, u, 0.333181202f);
    p = fmaf(p, u, -0.499994457f);
    p = fmaf(p, u, 0.99999994f);
  } else {
    p = fmaf(0.0138744842f, u, -0.0655903071f);
    p = fmaf(p, u, 0.148294136f);
    p = fmaf(p, u, -0.234545201f);
    p = fmaf(p, u, 0.330975264f);
    p = fmaf(p, u, -0.499859005f);
    p = fmaf(p, u, 0.999998569f);
  }
  return fmaf(p, u, fmaxf(v, 0.0f));
}

__device__ __forceinline__ float silu_fast(float v) { return v * reciprocal_fast(1.0f + exp2_fast(-v * kLog2E)); }

}  // namespace ssm::cuda
