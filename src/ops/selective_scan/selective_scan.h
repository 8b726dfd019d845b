// The selective scan of Mamba, "S6" (Gu & Dao 2023, algorithm 2): a diagonal state space model whose step size and
// input and output maps depend on the token. For channel c, state n, A = -exp(A_log):
//
//   delta_tc = softplus(dt_tc + dt_bias_c)                                              (9)
//   h_tcn    = exp(delta_tc A_cn) h_(t-1)cn + delta_tc B_tn x_tc                        (10)
//   y_tc     = sum_n C_tn h_tcn + D_c x_tc                                              (11)
//   out_tc   = y_tc silu(z_tc)                                                          (12)
//
//   x, dt, z (t, e)   A_log (e, n)   B, C (t, n)   D, dt_bias (e)   ->  out (t, e);  z, D, dt_bias may be absent
//
// Rows may be strided views. Each sequence of `seqs` has its own state; `h`, a state tensor (slots, n, e), gives where
// it starts and takes where it ends (core/state.h says how, with and without a tape); null starts at zero.
//
// Saved for backward: the inputs and the state before every 64th token of a sequence, on a GPU every 16th; all other
// states are recomputed chunk by chunk, and with them, for who waits for it (Var::late), `out`. Nothing of size t e n
// is ever stored. Work a (t, c, n): one exp and 3 multiply-adds forward; one exp and about 10 backward. README.md
// derives it, from x' = Ax + Bu on; the numbers above are its.
#pragma once

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

struct ScanIn {
  Var x, dt, A_log, B, C, D, dt_bias, z;
  Var dt_weight;  // (e, r) or absent; with it dt is (t, r), and dt dt_weight^T takes its place above
  Tensor rates;   // scan_rates(ctx, A_log), or absent; not looked at under a tape
};

// What a call makes of A_log before it begins: -exp(A_log) log2(e), f32 (n, e). One token costs as much exponential for
// this as for its own decays, so who decodes with constant weights keeps it. Absent on ref, which has no use for it.
Tensor scan_rates(const Ctx& ctx, const Tensor& A_log);

Var selective_scan(const Ctx& ctx, const ScanIn& in, const Seqs& seqs, Var* h);

// Tokens between saved states. The states of one chunk of kScanChunk tokens, 32 channels and 16 states are 128 KiB, and
// so are their decays: both stay in a core's second-level cache while backward walks over them.
inline constexpr int64_t kScanChunk = 64;
// On a GPU the states of a chunk and their decays stay in registers, and who has many registers has few warps.
inline constexpr int64_t kScanChunkCuda = 16;

struct ScanForward {
  Tensor x, dt, A_log, B, C, D, dt_bias, z, rates;
  Tensor dt_weight;  // on cuda, where step_multiplies_dt; else absent
  const Seqs* seqs;
  Tensor h;    // (slots, n, e) advanced in place, or absent
  Tensor out;  // (t, e)
  // (chunks, n, e): the state before each chunk, sequence after sequence, as scan_starts makes it; absent without a
  // tape
  Tensor starts;
};

struct ScanBackward {
  Tensor x, dt, A_log, B, C, D, dt_bias, z, starts;
  const Seqs* seqs;
  Tensor dout;  // (t, e)
  Tensor dh;    // (slots, n, e): in, the gradient of the final states; out, of the initial ones. Absent without state
  // Outputs, shaped like what they are the gradients of; any may be absent.
  Tensor dx, ddt, dA_log, dB, dC, dD, ddt_bias, dz;
  Tensor out;  // (12) once more; may be absent too
};

// Room for `starts`. Activations of bf16 on a GPU have them in bf16 too, all others in f32 (ref in f64).
Tensor scan_starts(const Ctx& ctx, const Seqs& seqs, int64_t n, int64_t e, DType activations);

namespace ref {
void selective_scan_forward(const ScanForward&, Threads&);
void selective_scan_backward(const ScanBackward&, Threads&);
}  // namespace ref
namespace cpu {
void scan_rates(const Tensor& A_log, const Tensor& rates);
void selective_scan_forward(const ScanForward&, Threads&);
void selective_scan_backward(const ScanBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void scan_rates(const Tensor& A_log, const Tensor& rates, Stream);
// Whether selective_scan_forward takes these with a dt_weight: one token each, in the common sizes.
bool step_multiplies_dt(const ScanForward&);
void selective_scan_forward(const ScanForward&, Stream);
void selective_scan_backward(const ScanBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
