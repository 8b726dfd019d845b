// Root-mean-square normalisation with the residual add (Zhang & Sennrich 2019; Mamba's block is Add -> Norm -> Mixer):
//
//   r = x + residual                                                                  (1)
//   s_t = (mean_c r_tc^2 + eps)^(-1/2),   y_tc = r_tc s_t w_c                         (2)
//
//   x (t, d)  residual (t, d) or absent  weight (d) or absent: ones  ->  y (t, d)  r (t, d)
//
// x may be a row-strided view (columns of a wider matrix). All in f32 (f64 on ref); on cuda x and y may be bf16 or f16,
// and residual, r and the rest stay f32. Without a residual r is x itself, widened where x is not f32. The backward
// gets the gradients of both y and r and saves r (shared with the residual stream) and s (t). Traffic: forward 16 bytes
// an element, backward 20; 12 and 16 with x in 2 bytes.
//
// On cuda x may also be f32 and y narrower: then x was not rounded before it is added, for 4 bytes an element more, and
// its gradient comes in y's dtype, for which x may have no other consumer.
//
// With y in 2 bytes and Ctx::recompute it saves r rounded to y's type instead, from which whoever saves y makes y
// again: 2 bytes an element kept instead of 6.
#pragma once

#include <optional>

#include "core/context.h"

namespace ssm {

struct NormedResidual {
  Var y;         // (t, d)
  Var residual;  // (t, d)
};

// y has x's dtype if it is not asked for in another.
NormedResidual rms_norm(const Ctx& ctx, const Var& x, const Var& residual, const Var& weight, double eps,
                        std::optional<DType> y = {});

struct RmsNormForward {
  Tensor x, residual, weight;  // inputs; residual and weight may be absent
  double eps;
  Tensor y, sum;  // outputs; sum is absent where r is x itself
  Tensor scale;   // (t): s of (2)
  Tensor kept;    // (t, d), r in y's type; may be absent, and is so but on cuda
};

struct RmsNormBackward {
  Tensor sum, weight, scale;  // sum: r of (1), on cuda also in the type of dy; weight may be absent
  Tensor dy, dsum;            // dsum may be absent: nobody used r
  // Outputs, each may be absent. dx and dresidual are the same numbers, in the dtypes of dy and of the residual.
  Tensor dx, dresidual, dweight;
};

namespace ref {
void rms_norm_forward(const RmsNormForward&, Threads&);
void rms_norm_backward(const RmsNormBackward&, Threads&);
}  // namespace ref
namespace cpu {
void rms_norm_forward(const RmsNormForward&, Threads&);
void rms_norm_backward(const RmsNormBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void rms_norm_forward(const RmsNormForward&, Stream);
void rms_norm_backward(const RmsNormBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
