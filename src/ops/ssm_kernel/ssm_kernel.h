// What a linear recurrence answers to an impulse: the kernel with which its outputs are a convolution of its inputs,
// the form S4 (Gu et al. 2021) and S4D (Gu et al. 2022) are trained in. For channel e of ops/discretize's system, with
// A-bar the matrix of its step,
//
//   K_l = Re(c A-bar^l b),   l = 0 .. length - 1                                            (1)
//   diagonal:  K_l = Re(sum_k c_k b_k (1 + z_k)^l), a Vandermonde product                   (2)
//   with f, g: the transform of K on a circle, four Cauchy products and Woodbury's formula  (3)
//
//   z, b, c, f, g (parts, n, e)  ->  K (length, e)
//
// ref runs (1) as it stands, by the recurrence. (3) is in double; on the cpu it takes tensors of f64 too. Saved for
// backward: the system. Work a (length, e, n): 5 multiply-adds forward and 6 backward for (2), some 30 and 75 for (3).
// README.md derives both.
#pragma once

#include "ops/discretize/discretize.h"

namespace ssm {

Var ssm_kernel(const Ctx& ctx, const StateSpace& system, int64_t length);

struct SsmKernelForward {
  Tensor z, b, c, f, g;
  Tensor K;  // (length, e)
};

struct SsmKernelBackward {
  Tensor z, b, c, f, g;
  Tensor dK;                  // (length, e)
  Tensor dz, db, dc, df, dg;  // outputs; df and dg as f and g
};

namespace ref {
void ssm_kernel_forward(const SsmKernelForward&, Threads&);
void ssm_kernel_backward(const SsmKernelBackward&, Threads&);
}  // namespace ref
namespace cpu {
void ssm_kernel_forward(const SsmKernelForward&, Threads&);
void ssm_kernel_backward(const SsmKernelBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void ssm_kernel_forward(const SsmKernelForward&, Stream);
void ssm_kernel_backward(const SsmKernelBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
