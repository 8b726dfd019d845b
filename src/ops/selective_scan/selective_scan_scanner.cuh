// The scanners of a block of the selective scan forward: (10) and (11), the states in registers, the products with C by
// the tensor cores.
#pragma once

#include "ops/selective_scan/selective_scan_block.cuh"

namespace ssm::cuda {

// sum += a b: a (16, 8) by rows lane / 4 and lane / 4 + 8, b (8, 8) by columns lane / 4; tf32, so of every factor the
// upper 11 bits count and the rest is cut off.
__device__ __forceinline__ void multiply_add(float (&sum)[4], float a0, float a1, float a2, float a3, float b0,
                                             float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
__device__ __forceinline__ float upper_bits(float v) { return __uint_as_float(__float_as_uint(v) & 0xffffe000u); }

template <class S, ScanOutput kOutput>
struct Scanner {
  using T = typename S::Element;
  static constexpr int kChannels = S::kChannels, kStates = S::kStates, kGroup = S::kGroup;
  // The product with C is one tf32 instruction for bf16; f16 and f32 add what the upper bits of h leave, f32 also what
  // those of C do.
  static constexpr bool kSplitH = !std::is_same_v<T, bf16>, kSplitC = std::is_same_v<T, float>;
  // With one channel a lane the mma's two halves of rows are two tokens, of which even and odd columns take C.
  static constexpr int kTokens = kChannels == 1 ? 2 : 1;

  const ScanArguments<T>& args;
  const ScanBlock<S>& block;
  int plane, row, quarter, local, channel, state;
  float A[kChannels][kStates], h[kChannels][kStates];
  float total[kChannels] = {};  // of Delta

  __device__ Scanner(const ScanArguments<T>& arguments, const ScanBlock<S>& b) : args(arguments), block(b) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    plane = warp / S::kChannelWarps, row = lane / 4, quarter = lane % 4;
    local = (warp % S::kChannelWarps * 8 + row) * kChannels;
    channel = block.slab + local;
    state = (plane * 4 + quarter) * kStates;
    const float* start = nullptr;  // (n, e)
    if (kOutput == ScanOutput::all && args.ends)
      start = args.ends + block.piece * args.n * args.e;
    else if (kOutput == ScanOutput::all && args.h)
      start = args.h + args.slots[block.sequence] * args.n * args.e;
#pragma unroll
    for (int j = 0; j < kChannels; ++j)
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        const bool inside = channel + j < args.e && state + i < args.n;
        const int64_t c = channel + j, n = state + i;
        A[j][i] = inside ? -kLog2E * expf(args.A_log[c * args.n + n]) : 0.0f;
        h[j][i] = inside && start ? start[n * args.e + c] : 0.0f;
      }
  }

  __device__ void store_state(float* to) const {  // (n, e)
#pragma unroll
    for (int i = 0; i < kStates; ++i)
#pragma unroll
      for (int j = 0; j < kChannels; ++j)
        if (channel + j < args.e && state + i < args.n)
          to[static_cast<int64_t>(state + i) * args.e + channel + j] = h[j][i];
  }

  // A lane's states on the tape; `to` is the first of them in (n, e).
  __device__ void store_start(Rounded<T>* to) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      if (state + i >= args.n) break;
#pragma unroll
      for (int j = 0; j < kChannels; j += 2) {
        Rounded<T>* at = to + static_cast<int64_t>(i) * args.e + j;
        if constexpr (kChannels > 1 && std::is_same_v<T, bf16>)
          if (args.e % 2 == 0 && channel + j < args.e) {
            *reinterpret_cast<__nv_bfloat162*>(at) = __floats2bfloat162_rn(h[j][i], h[j + 1][i]);
            continue;
          }
        if (channel + j < args.e) at[0] = from_float<Rounded<T>>(h[j][i]);
        if (kChannels > 1 && channel + j + 1 < args.e) at[1] = from_float<Rounded<T>>(h[(j + 1) % kChannels][i]);
      }
    }
  }

  // Three stages of a lane run at once, a group of tokens each, so that the special-function unit always has work while
  // the recurrence waits for nothing: loads, decays, update. Stores of y lag one group behind.
  struct Inputs {
    float of[kGroup][2 * kChannels];  // Delta of its channels, then Delta x
  };
  struct Matrices {
    float B[kGroup][kStates], C[kGroup / kTokens][kStates];
  };
  struct Decays {
    float of[kGroup][kChannels][kStates];
  };
  struct Outputs {
    float of[kGroup][kChannels];
  };

  __device__ void load(Inputs& to, int tile, int t) const {
#pragma unroll
    for (int u = 0; u < kGroup; ++u) read_shared(to.of[u], block.inputs(tile) + ((t + u) * S::kWidth + local) * 2);
  }
  __device__ void load(Matrices& to, int tile, int t) const {
#pragma unroll
    for (int u = 0; u < kGroup; ++u) read_shared(to.B[u], block.B(tile) + (t + u) * S::kDepth + state);
    const int odd = kTokens == 2 ? row & 1 : 0;
    if constexpr (kOutput == ScanOutput::all)
#pragma unroll
      for (int u = 0; u < kGroup; u += kTokens)
        read_shared(to.C[u / kTokens], block.C(tile) + (t + u + odd) * S::kDepth + state);
  }
  __device__ void decay(Decays& to, const Inputs& in) const {
#pragma unroll
    for (int u = 0; u < kGroup; ++u)
#pragma unroll
      for (int j = 0; j < kChannels; ++j)
#pragma unroll
        for (int i = 0; i < kStates; ++i) to.of[u][j][i] = exp2_fast(in.of[u][j] * A[j][i]);
  }
  // sum over states of C times the states of the mma's first and second half of rows
  __device__ void project(float (&sum)[4], const float (&first)[kStates], const float (&second)[kStates],
                          const float (&C)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates; i += 2) {
      if constexpr (kSplitH) {
        const float a0 = upper_bits(first[i]), a1 = upper_bits(second[i]), a2 = upper_bits(first[i + 1]),
                    a3 = upper_bits(second[i + 1]);
        multiply_add(sum, a0, a1, a2, a3, C[i], C[i + 1]);
        multiply_add(sum, first[i] - a0, second[i] - a1, first[i + 1] - a2, second[i + 1] - a3, C[i], C[i + 1]);
        if constexpr (kSplitC)
          multiply_add(sum, a0, a1, a2, a3, C[i] - upper_bits(C[i]), C[i + 1] - upper_bits(C[i + 1]));
      } else {
        multiply_add(sum, first[i], second[i], first[i + 1], second[i + 1], C[i], C[i + 1]);
      }
    }
  }
  __device__ void update(const Decays& decays, const Inputs& in, const Matrices& matrices, Outputs& y) {
    float before[kStates];
#pragma unroll
    for (int u = 0; u < kGroup; ++u) {
#pragma unroll
      for (int i = 0; i < kStates; ++i) before[i] = h[0][i];
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        if constexpr (kOutput == ScanOutput::ends_only) total[j] += in.of[u][j];
#pragma unroll
        for (int i = 0; i < kStates; ++i)
          h[j][i] = fmaf(decays.of[u][j][i], h[j][i], in.of[u][kChannels + j] * matrices.B[u][i]);  // (10)
      }
      if constexpr (kOutput == ScanOutput::ends_only) {
        continue;
      } else if constexpr (kChannels == 1) {
        if (u % 2 == 0) continue;
        float sum[4] = {};
        project(sum, before, h[0], matrices.C[u / 2]);  // (11)
        y.of[u - 1][0] = sum[0], y.of[u][0] = sum[3];
      } else {
#pragma unroll
        for (int j = 0; j < kChannels; j += 2) {
          float sum[4] = {};
          project(sum, h[j], h[j + 1], matrices.C[u]);  // (11)
          y.of[u][j] = sum[0], y.of[u][j + 1] = sum[2];
        }
      }
    }
  }
  __device__ void store(int tile, int t, const Outputs& y) const {
    if constexpr (kOutput == ScanOutput::all) {
      if (quarter != 0) return;  // all four lanes of a channel have the same
#pragma unroll
      for (int u = 0; u < kGroup; ++u) {
        float* to = block.y(tile, plane) + (t + u) * S::kWidth + local;
        if constexpr (kChannels == 1) *to = y.of[u][0];
        if constexpr (kChannels == 2) *reinterpret_cast<float2*>(to) = make_float2(y.of[u][0], y.of[u][1]);
        if constexpr (kChannels == 4)
          *reinterpret_cast<float4*>(to) = make_float4(y.of[u][0], y.of[u][1], y.of[u][2], y.of[u][3]);
      }
    }
  }

  // `starts`: where this lane's states before the next chunk go, or null.
  __device__ void walk(int tile, Rounded<T>*& starts) {
    const int64_t left = block.length - static_cast<int64_t>(tile) * S::kTile;
    Inputs in, in_next, in_after;
    Matrices matrices, matrices_next;
    Decays decays, decays_next;
    Outputs y, y_before;
    load(in, tile, 0);
    load(in_next, tile, kGroup);
    load(matrices, tile, 0);
    decay(decays, in);
#pragma unroll
    for (int t = 0; t < S::kTile; t += kGroup) {
      if (t + 2 * kGroup < S::kTile) load(in_after, tile, t + 2 * kGroup);
      if (t + kGroup < S::kTile) {
        load(matrices_next, tile, t + kGroup);
        decay(decays_next, in_next);
      }
      if constexpr (kOutput == ScanOutput::all)
        if (t % kScanChunkCuda == 0 && starts && t < left) {
          store_start(starts);
          starts += static_cast<int64_t>(args.n) * args.e;
        }
      update(decays, in, matrices, y);
      if (t > 0) store(tile, t - kGroup, y_before);
      in = in_next, in_next = in_after, matrices = matrices_next, decays = decays_next, y_before = y;
    }
    store(tile, S::kTile - kGroup, y_before);
  }

  __device__ int64_t first_chunk() const {  // the row of `starts` at which the piece begins
    int64_t chunks = 0;
    for (int64_t s = threadIdx.x % 32; s < block.sequence; s += 32)
      chunks += (args.offsets[s + 1] - args.offsets[s] + kScanChunkCuda - 1) / kScanChunkCuda;
    for (int over = 16; over; over /= 2) chunks += __shfl_xor_sync(~0u, chunks, over);
    return chunks + block.index * args.piece_length / kScanChunkCuda;
  }

  __device__ void run() {
    const int64_t states = static_cast<int64_t>(args.n) * args.e;
    Rounded<T>* starts = nullptr;
    if (kOutput == ScanOutput::all && args.starts)
      starts = args.starts + first_chunk() * states + static_cast<int64_t>(state) * args.e + channel;
    for (int tile = 0; tile < block.tiles; ++tile) {
      block.full.wait(tile);
      walk(tile, starts);
      block.done.arrive(tile);
    }
    if constexpr (kOutput == ScanOutput::ends_only) {
      store_state(args.ends + block.piece * states);
      if (plane == 0 && quarter == 0)
#pragma unroll
        for (int j = 0; j < kChannels; ++j)
          if (channel + j < args.e) args.steps[block.piece * args.e + channel + j] = total[j];
    } else if (args.h && block.begin + block.length == args.offsets[block.sequence + 1]) {
      store_state(args.h + args.slots[block.sequence] * states);
    }
  }
};

}  // namespace ssm::cuda
