// The logistic function and SiLU on a GPU: two instructions of the special-function unit, each good to 2^-22.
#pragma once

namespace ssm::cuda {

__device__ __forceinline__ float sigmoid(float v) {
  float power, result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(v * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(power + 1.0f));
  return result;
}

__device__ __forceinline__ float silu(float v) { return v * sigmoid(v); }

}  // namespace ssm::cuda
