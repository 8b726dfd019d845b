// The Vandermonde product of ssm_kernel, f32: SIMD in vandermonde_cpu.cpp.
#pragma once

#include "ops/ssm_kernel/ssm_kernel.h"

namespace ssm::cpu {

void vandermonde_forward(const SsmKernelForward&, Threads&);
void vandermonde_backward(const SsmKernelBackward&, Threads&);

}  // namespace ssm::cpu
