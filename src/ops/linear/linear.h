// y = x W^T + b, the weight as PyTorch keeps it: (out, in), row-major.
//
//   x (t, in)  weight (out, in)  bias (out) or absent  ->  y (t, out)                  (1)
//
// x may be a row-strided view (columns of a wider matrix). On cpu x and y are f32 and the weight f32, bf16 or f16,
// widened as it is read: this op and `embedding` alone know the storage dtypes. On ref all three share f32 or f64, on
// cuda f32, bf16 or f16; there a weight's gradient is f32. Without a tape x may be f32 there beside a narrower weight,
// and is not rounded then, for twice the work.
//
// One op, three schedules, chosen by t: up to kFewRows rows a product that reads each weight once (decoding is bound
// by that traffic), else GEMM. Saved for backward: x, unless its op's backward makes it again (Var::late). Work:
// 2 t in out forward, twice that backward.
#pragma once

#include <optional>

#include "core/context.h"

namespace ssm {

// y has x's dtype; on cuda it may be asked for in f32.
Var linear(const Ctx& ctx, const Var& x, const Var& weight, const Var& bias = {}, std::optional<DType> y = {});

struct LinearForward {
  Tensor x, weight, bias;  // bias may be absent
  Tensor y;
};

struct LinearBackward {
  Tensor x, weight, dy;  // x may be absent where dweight is
  // Outputs; each may be absent. `add_*`: add to what is there.
  Tensor dx, dweight, dbias;
  bool add_dx = false, add_dweight = false;
};

namespace ref {
void linear_forward(const LinearForward&, Threads&);
void linear_backward(const LinearBackward&, Threads&);
}  // namespace ref
namespace cpu {
void linear_forward(const LinearForward&, Threads&);
void linear_backward(const LinearBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void linear_forward(const LinearForward&, Stream);
void linear_backward(const LinearBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
