// Root-mean-square normalisation with a gate, over groups of channels (the output norm of Mamba-2). For each of
// `groups` equal, contiguous parts k of a row, d its width, sums over its channels:
//
//   gate, then norm:   v = y silu(z),  s_tk = (mean v^2 + eps)^(-1/2),  out = v s w       (1)
//   norm, then gate:   s_tk = (mean y^2 + eps)^(-1/2),  out = y s w silu(z)               (2)
//   no norm:           out = y silu(z)                                                    (3)
//
//   y, z (t, e), may be columns of wider matrices  weight (e)  ->  out (t, e)
//
// All in f32 (f64 on ref). Saved for backward: the inputs and s (t, groups). `out` is never an alias. Traffic: 12 bytes
// an element forward, 20 backward.
#pragma once

#include "core/context.h"

namespace ssm {

enum class GateOrder { gate_first, norm_first };

Var gated_rms_norm(const Ctx& ctx, const Var& y, const Var& z, const Var& weight, int64_t groups, double eps,
                   GateOrder order);
Var gate(const Ctx& ctx, const Var& y, const Var& z);  // (3)

struct GatedNormForward {
  Tensor y, z, weight;  // without a weight there is no norm: (3)
  double eps;
  GateOrder order;
  Tensor out;
  Tensor scale;  // (t, groups): s. Absent without a norm
};

struct GatedNormBackward {
  Tensor y, z, weight, scale;
  GateOrder order;
  Tensor dout;
  Tensor dy, dz, dweight;  // outputs; each may be absent
};

namespace ref {
void gated_rms_norm_forward(const GatedNormForward&, Threads&);
void gated_rms_norm_backward(const GatedNormBackward&, Threads&);
}  // namespace ref
namespace cpu {
void gated_rms_norm_forward(const GatedNormForward&, Threads&);
void gated_rms_norm_backward(const GatedNormBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void gated_rms_norm_forward(const GatedNormForward&, Stream);
void gated_rms_norm_backward(const GatedNormBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
