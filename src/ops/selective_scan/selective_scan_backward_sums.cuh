// What the selective scan's backward does around its main kernel: joins the pieces of a sequence, (6), and adds the
// shares that blocks leave of dB, dC and the parameters' gradients, in fixed order.
#pragma once

#include "ops/selective_scan/selective_scan_backward_inputs.cuh"

namespace ssm::cuda {
namespace {

// From what leaves each piece on its own to what enters each: last piece first, along each sequence. One thread a
// channel and state.
template <class T>
__global__ void scan_backward_carry_kernel(const __grid_constant__ BackwardArgs<T> args, int pieces) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int n = args.group + static_cast<int>(blockIdx.y);
  if (c >= args.e) return;
  const float rate = -expf(args.A_log[c * args.n + n]) * kLog2E;
  float carried = 0;
  const auto share = [&](int i) -> float& { return args.carried[(static_cast<int64_t>(i) * args.n + n) * args.e + c]; };
  constexpr int kAtOnce = 8;  // pieces whose loads are under way together
  for (int end = pieces; end > 0; end -= kAtOnce) {
    float own[kAtOnce] = {}, decay[kAtOnce] = {};  // 0: nothing leaves a sequence's first piece
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = end - 1 - u;
      if (i < 0 || args.pieces[i].first) continue;
      own[u] = share(i), decay[u] = exp2_fast(args.delta_sums[static_cast<int64_t>(i) * args.e + c] * rate);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = end - 1 - u;
      if (i < 0) break;
      if (args.pieces[i].last)
        carried = args.dh ? args.dh[(static_cast<int64_t>(args.pieces[i].slot) * args.n + n) * args.e + c] : 0.0f;
      share(i) = carried;
      carried = own[u] + decay[u] * carried;
    }
  }
}

// dB and dC from the shares of the blocks of channels. One thread four states of a token.
template <class T>
__global__ void scan_backward_sum_tokens_kernel(const Rounded<T>* shares, int blocks, int64_t tokens, int states,
                                                Rows<T> dB, Rows<T> dC) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t token = at / 8;
  const int n = static_cast<int>(at % 4) * 4;
  if (token >= tokens) return;
  float total[4] = {};
#pragma unroll 8
  for (int b = 0; b < blocks; ++b) {
    float share[4];
    load_floats(shares + (b * tokens * 8 + at) * 4, share);
#pragma unroll
    for (int j = 0; j < 4; ++j) total[j] += share[j];
  }
  const Rows<T>& to = at % 8 < 4 ? dB : dC;
  if (!to) return;
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (n + j < states) to[token][n + j] = from_float<T>(total[j]);
}

// dA_log, dD and ddt_bias from the shares of the workers. Row of the grid: a state, then D, then the bias.
__global__ void scan_backward_sum_workers_kernel(const float* dA, const float* dD, const float* dbias, int workers,
                                                 int64_t e, int n, int group, int states, const float* A_log,
                                                 float* dA_log, float* dD_out, float* dbias_out) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int state = static_cast<int>(blockIdx.y);
  if (c >= e) return;
  const float* shares = state < states ? dA + state * e : state == states ? dD : dbias;
  const int64_t step = state < states ? kStates * e : e;
  float total = 0;
#pragma unroll 4
  for (int w = 0; w < workers; ++w) total += shares[w * step + c];
  if (state < states) {
    const int64_t at = c * n + group + state;
    if (dA_log) dA_log[at] = -expf(A_log[at]) * total;
  } else if (float* to = state == states ? dD_out : dbias_out) {
    to[c] = total;
  }
}

// A table that the host writes without a copy: its entries are the kernel's arguments.
template <class Entry>
struct TablePart {
  static constexpr int kEntries = 3584 / sizeof(Entry);  // a kernel's arguments end at 4 KiB
  Entry entries[kEntries];
};
template <class Entry>
__global__ void write_table_kernel(const __grid_constant__ TablePart<Entry> part, int count, Entry* to) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += blockDim.x) to[i] = part.entries[i];
}

}  // namespace
}  // namespace ssm::cuda
