// The scanners of a block of the selective scan forward: (10) and (11). States in registers, products with C, and in
// one case with B, by the tensor cores.
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
// The same with bf16 factors: a0 and a1 are two neighbouring columns of a, b0 two rows of b.
__device__ __forceinline__ void multiply_add(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(b0));
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

  // Three stages run at once in a lane, a group of tokens each, so that the special-function unit always has work while
  // the recurrence waits for nothing: loads, factors, update. Stores of y lag one group behind.
  struct Inputs {
    float delta[kGroup][kChannels], input[kGroup][kChannels];  // input: Delta x
    uint32_t words[kGroup / kTokens], B[kGroup / kTokens];     // S::kProducts
  };
  struct Matrices {
    float B[kGroup][kStates], C[kGroup / kTokens][kStates];
  };
  struct Factors {
    float decay[kGroup][kChannels][kStates], product[kGroup / kTokens][4];
  };
  struct Terms {
    float input[kGroup][kChannels], delta[kGroup][kChannels];
  };
  using Outputs = float[kGroup][kChannels];

  __device__ void load(Inputs& to, int tile, int t) const {
    if constexpr (S::kProducts) {
      // (hi, mid), (lo, 0) of this token and of the next: what lanes with quarter 0, 1, 2 and 3 put into the mma.
      const uint32_t* words = block.words(tile) + (quarter / 2) * S::kWordRow + local * 2 + (quarter & 1);
      const auto* B = reinterpret_cast<const uint32_t*>(block.B(tile)) + (quarter / 2) * S::kDepth + plane * 8 + row;
#pragma unroll
      for (int u = 0; u < kGroup; ++u) to.delta[u][0] = block.inputs(tile)[(t + u) * S::kWidth + local];
#pragma unroll
      for (int u = 0; u < kGroup; u += 2) {
        to.words[u / 2] = words[(t + u) * S::kWordRow];
        to.B[u / 2] = B[(t + u) * S::kDepth];
      }
    } else {
#pragma unroll
      for (int u = 0; u < kGroup; ++u) {
        float both[2 * kChannels];
        read_shared(both, block.inputs(tile) + ((t + u) * S::kWidth + local) * 2);
#pragma unroll
        for (int j = 0; j < kChannels; ++j) to.delta[u][j] = both[j], to.input[u][j] = both[kChannels + j];
      }
    }
  }
  __device__ void load(Matrices& to, int tile, int t) const {
    if constexpr (!S::kProducts)
#pragma unroll
      for (int u = 0; u < kGroup; ++u) read_shared(to.B[u], block.B(tile) + (t + u) * S::kDepth + state);
    const int odd = kTokens == 2 ? row & 1 : 0;
    if constexpr (kOutput == ScanOutput::all)
#pragma unroll
      for (int u = 0; u < kGroup; u += kTokens)
        read_shared(to.C[u / kTokens], block.C(tile) + (t + u + odd) * S::kDepth + state);
  }
  __device__ void factor(Factors& to, const Inputs& in) const {
#pragma unroll
    for (int u = 0; u < kGroup; ++u)
#pragma unroll
      for (int j = 0; j < kChannels; ++j)
#pragma unroll
        for (int i = 0; i < kStates; ++i) to.decay[u][j][i] = exp2_fast(in.delta[u][j] * A[j][i]);
    if constexpr (S::kProducts)
#pragma unroll
      for (int u = 0; u < kGroup / 2; ++u) {
        float(&sum)[4] = to.product[u];
        sum[0] = sum[1] = sum[2] = sum[3] = 0;
        multiply_add(sum, quarter < 2 ? in.words[u] : 0, quarter < 2 ? 0 : in.words[u], in.B[u]);
      }
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
  __device__ void update() {
    float before[kStates];
#pragma unroll
    for (int u = 0; u < kGroup; ++u) {
#pragma unroll
      for (int i = 0; i < kStates; ++i) before[i] = h[0][i];
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        if constexpr (kOutput == ScanOutput::ends_only) total[j] += terms.delta[u][j];
#pragma unroll
        for (int i = 0; i < kStates; ++i) {  // (10)
          float product;
          if constexpr (S::kProducts)
            product = factors.product[u / 2][u % 2 * 2 + i];
          else
            product = terms.input[u][j] * matrices.B[u][i];
          h[j][i] = fmaf(factors.decay[u][j][i], h[j][i], product);
        }
      }
      if constexpr (kOutput == ScanOutput::ends_only) {
        continue;
      } else if constexpr (kChannels == 1) {
        if (u % 2 == 0) continue;
        float sum[4] = {};
        project(sum, before, h[0], matrices.C[u / 2]);  // (11)
        out[u - 1][0] = sum[0], out[u][0] = sum[3];
      } else {
#pragma unroll
        for (int j = 0; j < kChannels; j += 2) {
          float sum[4] = {};
          project(sum, h[j], h[j + 1], matrices.C[u]);  // (11)
          out[u][j] = sum[0], out[u][j + 1] = sum[2];
        }
      }
    }
  }
  // The four lanes of a channel all have its y.
  __device__ void store(int tile, int t) const {
    float* to = block.y(tile, plane) + t * S::kOutRow + local;
    if constexpr (kOutput == ScanOutput::ends_only) {
      return;
    } else if constexpr (S::kProducts) {
#pragma unroll
      for (int u = 0; u < kGroup; u += 4) {
        const float low = quarter & 1 ? out[u + 1][0] : out[u][0], high = quarter & 1 ? out[u + 3][0] : out[u + 2][0];
        to[(u + quarter) * S::kOutRow] = quarter & 2 ? high : low;
      }
    } else if (quarter == 0) {
#pragma unroll
      for (int u = 0; u < kGroup; ++u) {
        float* at = to + u * S::kOutRow;
        if constexpr (kChannels == 1) *at = out[u][0];
        if constexpr (kChannels == 2) *reinterpret_cast<float2*>(at) = make_float2(out[u][0], out[u][1]);
        if constexpr (kChannels == 4)
          *reinterpret_cast<float4*>(at) = make_float4(out[u][0], out[u][1], out[u][2], out[u][3]);
      }
    }
  }

  // What the stages hand on. The group that `factors` belong to is updated next; `in` is the one after it.
  Factors factors;
  Terms terms;
  Matrices matrices;
  Inputs in;
  Outputs out;

  // One step of the pipeline: updates a group, makes the factors of the next, and loads: inputs two groups ahead, B and
  // C one.
  __device__ void advance(int tile_after, int t_after, int tile_next, int t_next) {
    Inputs in_after;
    Matrices matrices_next;
    Factors factors_next;
    load(in_after, tile_after, t_after);
    load(matrices_next, tile_next, t_next);
    factor(factors_next, in);
    update();
    keep_terms();
    in = in_after, matrices = matrices_next, factors = factors_next;
  }
  __device__ void keep_terms() {
#pragma unroll
    for (int u = 0; u < kGroup; ++u)
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        if constexpr (!S::kProducts) terms.input[u][j] = in.input[u][j];
        if constexpr (kOutput == ScanOutput::ends_only) terms.delta[u][j] = in.delta[u][j];
      }
  }
  // Its last two steps of a tile already load from the next one, so that the pipeline never runs dry. The loop is not
  // unrolled whole: in straight-line code the compiler would move each stage down to where its result is used.
  __device__ void walk(int tile) {
    constexpr int kGroups = S::kTile / kGroup;
#pragma unroll 2
    for (int g = 0; g < kGroups - 2; ++g) {
      if (g > 0) store(tile, (g - 1) * kGroup);
      advance(tile, (g + 2) * kGroup, tile, (g + 1) * kGroup);
    }
    if (tile + 1 < block.tiles) block.full.wait(tile + 1);
    store(tile, S::kTile - 3 * kGroup);
    advance(tile + 1, 0, tile, S::kTile - kGroup);
    store(tile, S::kTile - 2 * kGroup);
    advance(tile + 1, kGroup, tile + 1, 0);
    store(tile, S::kTile - kGroup);
  }

  __device__ int64_t first_chunk() const {  // the row of `starts` at which the piece begins
    int64_t chunks = 0;
    for (int64_t s = threadIdx.x % 32; s < block.sequence; s += 32)
      chunks += (args.offsets[s + 1] - args.offsets[s] + kScanChunk - 1) / kScanChunk;
    for (int over = 16; over; over /= 2) chunks += __shfl_xor_sync(~0u, chunks, over);
    return chunks + block.index * args.piece_length / kScanChunk;
  }

  __device__ void run() {
    const int64_t states = static_cast<int64_t>(args.n) * args.e;
    float* starts = kOutput == ScanOutput::all && args.starts ? args.starts + first_chunk() * states : nullptr;
    block.full.wait(0);
    load(in, 0, 0);
    load(matrices, 0, 0);
    factor(factors, in);
    keep_terms();
    load(in, 0, kGroup);
    for (int tile = 0; tile < block.tiles; ++tile) {
      if (starts && tile % (kScanChunk / S::kTile) == 0) {
        store_state(starts);
        starts += states;
      }
      walk(tile);
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
