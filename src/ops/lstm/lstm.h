// The recurrence of an LSTM over packed sequences (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al.
// 2000), gates in the order of PyTorch, the input's share of them computed before by a linear:
//
//   (a_i, a_f, a_g, a_o) = x_t + W h_{t-1} + b                                                        (1)
//   i, f, o = sigmoid(a_i, a_f, a_o),   g = tanh(a_g)                                                  (2)
//   c_t = f c_{t-1} + i g                                                                              (3)
//   h_t = o tanh(c_t)                                                                                  (4)
//
//   x (t, 4 e), may be columns of a wider matrix  weight (4 e, e)  bias (4 e) or absent  ->  h (t, e)
//   h, c (slots, e): of each slot after its last token
//
// No state: start from zero and keep nothing. Without a tape the rows seqs.slots are advanced in place, under a tape
// `*h` and `*c` become new values. All f32 (f64 on ref); on cuda x and y may be bf16 or f16.
//
// Saved for backward: the gates (t, 4 e), c and h (t, e), the incoming state, the weight. Work: 8 e operations a row
// and channel forward, 16 e backward, one row of a sequence after the other.
#pragma once

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

Var lstm(const Ctx& ctx, const Var& x, const Var& weight, const Var& bias, const Seqs& seqs, Var* h, Var* c);

struct LstmForward {
  Tensor x, weight, bias;  // bias may be absent
  const Seqs& seqs;
  Tensor h, c;          // (slots, e), advanced in place; may be absent
  Tensor y;             // outputs: h of each row,
  Tensor gates, cells;  // i, f, g, o and c; may be absent
};

struct LstmBackward {
  Tensor weight, gates, cells, y, h, c;  // h, c: the incoming state, or absent
  const Seqs& seqs;
  Tensor dy, dnew_h, dnew_c;  // the last two may be absent
  Tensor dx;                  // outputs; the others may be absent
  Tensor dweight, dbias, dh, dc;
};

namespace ref {
void lstm_forward(const LstmForward&, Threads&);
void lstm_backward(const LstmBackward&, Threads&);
}  // namespace ref
namespace cpu {
void lstm_forward(const LstmForward&, Threads&);
void lstm_backward(const LstmBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void lstm_forward(const LstmForward&, Stream);
void lstm_backward(const LstmBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
