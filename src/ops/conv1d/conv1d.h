// Causal depthwise convolution over packed sequences, with the activation fused and the last inputs carried as state
// (the "conv" of Mamba's mixer):
//
//   X^s = [ state rows of sequence s (w - 1), or zeros ; x rows of sequence s ]                      (1)
//   v_pc = b_c + sum_k W_ck X^s_{p+k, c},   k = 0 .. w - 1                                            (2)
//   y_pc = v_pc, or silu(v_pc) = v_pc sigmoid(v_pc)                                                   (3)
//   new state rows of s = the last w - 1 rows of X^s                                                  (4)
//
//   x (t, e), may be columns of a wider matrix  weight (e, 1, w)  bias (e) or absent  ->  y (t, e)
//   state (slots, w - 1, e): the last inputs of each slot, oldest first
//
// p counts from the start of the sequence; taps never cross sequences. No state: start from zero and keep nothing.
// Without a tape the rows seqs.slots are advanced in place, under a tape `*state` becomes a new value (core/state.h);
// slots that no sequence names, or an empty one does, keep their rows. All f32 (f64 on ref); any width w >= 1.
//
// Saved for backward: x, weight, bias, the incoming state; v is computed again. y is never an alias of x.
// Traffic: 8 bytes an element forward, 12 backward; 2 w operations and an activation an element forward, 6 w backward.
#pragma once

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

enum class Activation { none, silu };

Var conv1d(const Ctx& ctx, const Var& x, const Var& weight, const Var& bias, Activation activation, const Seqs& seqs,
           Var* state);

struct Conv1dForward {
  Tensor x, weight, bias;  // weight (e, w); bias may be absent
  Tensor state;            // may be absent
  const Seqs& seqs;
  Activation activation;
  Tensor y;          // outputs
  Tensor new_state;  // absent with state; `state` itself or a copy of it, whose rows of seqs.slots are advanced
};

struct Conv1dBackward {
  Tensor x, weight, bias, state;  // as above; state is the incoming one
  const Seqs& seqs;
  Activation activation;
  Tensor dy, dnew_state;              // dnew_state may be absent: nobody used the new state
  Tensor dx, dweight, dbias, dstate;  // outputs; each may be absent
};

namespace ref {
void conv1d_forward(const Conv1dForward&, Threads&);
void conv1d_backward(const Conv1dBackward&, Threads&);
}  // namespace ref
namespace cpu {
void conv1d_forward(const Conv1dForward&, Threads&);
void conv1d_backward(const Conv1dBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void conv1d_forward(const Conv1dForward&, Stream);
void conv1d_backward(const Conv1dBackward&, Stream);
}  // namespace cuda

// X of (1): where its rows are.
template <class T>
struct ConvInputs {
  Matrix<T> x;
  T* state;  // (slots, carried, e) or null
  const Seqs& seqs;
  int64_t carried;  // w - 1

  // Row i of X^s, 0 <= i < carried + length; null stands for zeros.
  T* row(int64_t s, int64_t i) const {
    if (i >= carried) return x[seqs.offsets[static_cast<size_t>(s)] + i - carried];
    return state ? state + (seqs.slots[static_cast<size_t>(s)] * carried + i) * x.columns : nullptr;
  }
};

}  // namespace ssm
