// From the parameters of a structured state space model (S4D, Gu et al. 2022; S4, Gu et al. 2021) to the recurrence it
// is run as. Channel e of n modes, real and imaginary parts of a mode apart, copy s = e mod (copies) of A, B and P:
//
//   Delta = exp(inv_dt) or softplus(inv_dt),   lambda_k = -exp(A_real) - i A_imag                        (1)
//   x_t = x_(t-1) + z x_(t-1) - g Re(sum_k f_k x_k,(t-1)) + b u_t,   y_t = Re(sum_k c_k x_k,t)           (2)
//   zero-order hold:  z = e^(Delta lambda) - 1,   bilinear:  z = Delta lambda / (1 - Delta lambda / 2)   (3)
//   b = B z / lambda,   c = 2 C  (C where A is real)                                                     (4)
//
// and, where A = diag(lambda) - P P* (bilinear alone), f, g and another b: (9) to (12) of README.md, which derives
// them.
//
//   inv_dt (e, 1)  A_real, A_imag (s, n)  B (1, s, n, parts)  C (1, e, n, parts)  P (1, s, n, 2)
//     ->  z, b, c and, with P, f, g: (parts, n, e)
//
// parts is 2, or 1 where A_imag is absent: a real A. z = A-bar - 1 and not A-bar itself is what is kept: a slow mode
// differs from 1 by 1e-4, of which f32 would keep three digits. Shapes are those of the published checkpoints. Saved
// for backward: the parameters. Work: one exponential a mode and channel. On the cpu all is computed in double.
#pragma once

#include "core/context.h"

namespace ssm {

enum class Discretization { zoh, bilinear };
enum class StepTransform { exp, softplus };

struct DiscretizeIn {
  Var inv_dt, A_real, A_imag, B, C, P;  // A_imag absent: real; P absent: diagonal
  Discretization method = Discretization::zoh;
  StepTransform step = StepTransform::exp;
};

// The recurrence (2). f and g are both there or both absent.
struct StateSpace {
  Var z, b, c, f, g;  // (parts, n, e)

  int64_t parts() const { return z.value.size(0); }
  int64_t modes() const { return z.value.size(1); }
  int64_t channels() const { return z.value.size(2); }
};

StateSpace discretize(const Ctx& ctx, const DiscretizeIn& in);

struct DiscretizeForward {
  Tensor inv_dt, A_real, A_imag, B, C, P;
  Discretization method;
  StepTransform step;
  Tensor z, b, c, f, g;  // outputs
};

struct DiscretizeBackward {
  Tensor inv_dt, A_real, A_imag, B, C, P;
  Discretization method;
  StepTransform step;
  Tensor dz, db, dc, df, dg;
  // Outputs, shaped like what they are the gradients of; any may be absent.
  Tensor dinv_dt, dA_real, dA_imag, dB, dC, dP;
};

namespace ref {
void discretize_forward(const DiscretizeForward&, Threads&);
void discretize_backward(const DiscretizeBackward&, Threads&);
}  // namespace ref
namespace cpu {
void discretize_forward(const DiscretizeForward&, Threads&);
void discretize_backward(const DiscretizeBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void discretize_forward(const DiscretizeForward&, Stream);
void discretize_backward(const DiscretizeBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
