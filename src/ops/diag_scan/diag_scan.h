// A linear recurrence over complex modes with carried state, the layer of S4D and S4 run token by token: for channel e,
// its modes k, and real inputs and outputs,
//
//   kappa_t = Re(sum_k f_k x_k,(t-1))                                                       (1)
//   x_k,t   = x_k,(t-1) + z_k x_k,(t-1) - g_k kappa_t + b_k u_t                             (2)
//   y_t     = Re(sum_k c_k x_k,t) + D u_t                                                   (3)
//
//   u (t, e)  z, b, c, f, g (parts, n, e): ops/discretize  D: e numbers  ->  y (t, e)
//   state (slots, parts, n, e): x, real parts before imaginary ones
//
// f and g, the rank one of S4, come together or not at all; D may be absent. Each sequence of `seqs` has its own state;
// `state` gives where it starts and takes where it ends (core/state.h says how, with and without a tape); null starts
// at zero.
//
// Saved for backward: the inputs, and x before every kDiagScanSpan-th token. Work a (t, e, n): 8 multiply-adds forward
// (4 where A is real), 4 more with rank one, three times that backward.
#pragma once

#include "core/sequences.h"
#include "ops/discretize/discretize.h"

namespace ssm {

Var diag_scan(const Ctx& ctx, const StateSpace& system, const Var& u, const Var& D, const Seqs& seqs, Var* state);
// The same without outputs: what is left of the inputs in the end. For who has y from a convolution.
void diag_scan_state(const Ctx& ctx, const StateSpace& system, const Var& u, const Seqs& seqs, Var* state);

// Tokens between saved states: for 32 complex modes they are then a number a token and channel, as much as u. The
// states between are computed again, a mode at a time, and stay in the first-level cache.
inline constexpr int64_t kDiagScanSpan = 64;

struct DiagScanForward {
  Tensor z, b, c, f, g, u, D;
  const Seqs* seqs;
  Tensor state;   // (slots, parts, n, e) advanced in place, or absent
  Tensor y;       // (t, e), or absent
  Tensor starts;  // (spans, parts, n, e): x before each span, sequence after sequence; absent without a tape
};

struct DiagScanBackward {
  Tensor z, b, c, f, g, u, D, starts;
  const Seqs* seqs;
  Tensor dy;      // (t, e), or absent
  Tensor dstate;  // (slots, parts, n, e): in, the gradient of the final states; out, of the initial ones. May be absent
  Tensor dz, db, dc, df, dg, du, dD;  // outputs; df and dg as f and g, du and dD may be absent
};

// Rows of `starts`, and the first of a sequence: from its offset and number alone, so up to one a sequence is unused.
int64_t diag_scan_spans(const Seqs& seqs);
int64_t diag_scan_first_span(const Seqs& seqs, int64_t s);

namespace ref {
void diag_scan_forward(const DiagScanForward&, Threads&);
void diag_scan_backward(const DiagScanBackward&, Threads&);
}  // namespace ref
namespace cpu {
void diag_scan_forward(const DiagScanForward&, Threads&);
void diag_scan_backward(const DiagScanBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void diag_scan_forward(const DiagScanForward&, Stream);
void diag_scan_backward(const DiagScanBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
