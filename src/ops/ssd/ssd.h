// The state space dual layer of Mamba-2, "SSD" (Dao & Gu 2024): a selective state space model whose decay is one number
// a head and token, which makes whole chunks of it matrix products. For token t of head h, group k = h / (m / g), A =
// -exp(A_log_h), everything of one head and S its state, n x p:
//
//   delta_t = softplus(dt_t + dt_bias), limited to [dt_min, dt_max]                     (1)
//   S_t     = a_t S_(t-1) + delta_t B_t^T x_t,   a_t = exp(delta_t A)                   (2)
//   y_t     = C_t S_t + D x_t                                                           (3)
//
//   x (t, m p)  dt (t, m)  A_log (m)  B, C (t, g n)  D (m) or (m p)  dt_bias (m)  ->  y (t, m p)
//   state (slots, m, n, p);  D and dt_bias may be absent
//
// Rows may be strided views. Heads of a group lie side by side, and all heads of a group share its B and C. Each
// sequence of `seqs` has its own state; `state` gives where it starts and takes where it ends (core/state.h says how,
// with and without a tape); null starts at zero. The derivative of a step that (1) limited is zero.
//
// Saved for backward: the inputs and the state before every kSsdSpan-th token of a sequence; the rest is computed
// again. Work a (t, m, n, p): 2 multiply-adds forward and 5 backward, and what the chunks' own matrices add (README.md,
// which derives it all and shows that recurrence, matrix and chunks are the same numbers; the numbers above are its).
#pragma once

#include <limits>

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

struct SsdIn {
  Var x, dt, A_log, B, C, D, dt_bias;
  int64_t groups = 1;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};

Var ssd(const Ctx& ctx, const SsdIn& in, const Seqs& seqs, Var* state);

// Tokens between saved states. A state is as much as the layer's other activations of some 20 tokens, so one in 256
// adds a tenth to them; the 8 states in between, a head's 8 x 32 KiB for 128 x 64, are computed again into a
// second-level cache.
inline constexpr int64_t kSsdSpan = 256;

struct SsdSizes {
  int64_t m, p, g, n;  // heads, their width, groups, states
  int64_t group_of(int64_t head) const { return head / (m / g); }
};

struct SsdForward {
  Tensor x, dt, A_log, B, C, D, dt_bias;
  SsdSizes sizes;
  double dt_min, dt_max;
  const Seqs* seqs;
  Tensor state;   // (slots, m, n, p) advanced in place, or absent
  Tensor y;       // (t, m p)
  Tensor starts;  // (spans, m, n, p): the state before each span, sequence after sequence; absent without a tape
};

struct SsdBackward {
  Tensor x, dt, A_log, B, C, D, dt_bias, starts;
  SsdSizes sizes;
  double dt_min, dt_max;
  const Seqs* seqs;
  Tensor dy;      // (t, m p)
  Tensor dstate;  // (slots, m, n, p): in, the gradient of the final states; out, of the initial ones. May be absent
  // Outputs, shaped like what they are the gradients of; any may be absent.
  Tensor dx, ddt, dA_log, dB, dC, dD, ddt_bias;
};

int64_t ssd_spans(const Seqs& seqs);                     // rows of `starts`
std::vector<int64_t> ssd_first_spans(const Seqs& seqs);  // (count): the first of each sequence

namespace ref {
void ssd_forward(const SsdForward&, Threads&);
void ssd_backward(const SsdBackward&, Threads&);
}  // namespace ref
namespace cpu {
void ssd_forward(const SsdForward&, Threads&);
void ssd_backward(const SsdBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void ssd_forward(const SsdForward&, Stream);
void ssd_backward(const SsdBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
