// The kernel of the selective scan forward, (9) to (12). A block walks along one piece of a sequence with a slab of its
// channels, a tile of tokens at a time, in two roles that work at the same time. "Helpers" load a tile, make Delta and
// Delta x of it and put them, with B and C, into shared memory; "scanners" carry the states in registers through the
// tile and put y there; the helpers gate y and store it. README.md, "On the GPU, forward", has the counts behind it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/cuda_kernel.cuh"
#include "ops/selective_scan/selective_scan.h"
#include "ops/selective_scan/selective_scan_math.cuh"

namespace ssm::cuda {

template <class T>
struct ScanArguments {
  Rows<const T> x, dt, z, B, C;  // (t, e), (t, n); z may be null
  Rows<T> out;                   // (t, e)
  const float* A_log;            // (e, n)
  const float *D, *dt_bias;      // (e), or null
  float* h;                      // (slots, n, e), or null
  float* starts;                 // (chunks, n, e), or null
  float* ends;                   // (pieces, n, e): in, where a piece starts; as kEndsOnly, out, where it ends from 0
  float* steps;                  // (pieces, e): as kEndsOnly, out, the sum of Delta over the piece
  const int64_t *offsets, *slots, *pieces;
  int64_t piece_length;  // tokens of all pieces but a sequence's last
  int e, n, slabs;       // slabs of channels
};

enum class ScanOutput { all, ends_only };

// How a block is made. A scanner's lane owns kChannels channels and 2 kPairs states: with mma.m16n8k8 in mind, lane / 4
// says which channels of the warp's 8 kChannels, lane % 4 which states of its 8 kPairs.
template <class T, int channels, int pairs, int channel_warps, int state_warps, int helper_warps, int tile, int group,
          int blocks>
struct ScanShape {
  using Element = T;
  static constexpr int kChannels = channels, kPairs = pairs, kChannelWarps = channel_warps, kStateWarps = state_warps,
                       kTile = tile;                           // tokens
  static constexpr int kGroup = group;                         // tokens a scanner has at each stage of its pipeline
  static constexpr int kBlocks = blocks;                       // an SM
  static constexpr int kStates = 2 * pairs;                    // a lane's
  static constexpr int kWidth = 8 * channels * channel_warps;  // a block's channels
  static constexpr int kDepth = 4 * kStates * state_warps;     // a block's states, at least n
  static constexpr int kScanners = 32 * channel_warps * state_warps, kHelpers = 32 * helper_warps;
  static constexpr int kThreads = kScanners + kHelpers;
  // Shared memory, in floats, twice: a tile's (Delta, Delta x), B, C, and y in one plane a state warp.
  // With one channel a lane in bf16 the products Delta x B come from the tensor cores; README.md says why there.
  static constexpr bool kProducts = channels == 1 && pairs == 1 && std::is_same_v<T, bf16>;
  // Rows of the words that stand for Delta x, and of y, are apart by what spreads a warp's access over all banks.
  static constexpr int kWordRow = 2 * kWidth + 16, kOutRow = kProducts ? kWidth + 8 : kWidth;
  static constexpr int kInputs = tile * (kProducts ? kWidth + kWordRow : 2 * kWidth), kMatrix = tile * kDepth,
                       kPlane = tile * kOutRow;
  static constexpr int kStage = kInputs + 2 * kMatrix + state_warps * kPlane;
  static constexpr size_t kShared = 2 * kStage * sizeof(float) + 4 * sizeof(uint64_t);
  // A helper owns a strip of neighbouring channels, 16 bytes of them, of every kRows-th token.
  static constexpr int kStrip = 16 / sizeof(T), kStrips = kWidth / kStrip, kRows = kHelpers / kStrips,
                       kItems = tile / kRows;
  static_assert(kHelpers % kStrips == 0 && tile % kRows == 0 && tile % group == 0 && kScanChunk % tile == 0);
  static_assert(channels > 1 || group % (kProducts ? 4 : 2) == 0);
};

// What one role tells the other, a pair of barriers a half of shared memory: the tile is there; the scanners are done
// with it. Only who waits waits: scanners run past each other and past the helpers as far as the two halves allow.
class TileBarrier {
 public:
  __device__ explicit TileBarrier(uint64_t* pair) : pair_(pair) {}
  __device__ void init(int warps) const {
    for (int i = 0; i < 2; ++i)
      asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address(pair_ + i)), "r"(warps) : "memory");
  }
  __device__ void arrive(int tile) const {  // by every warp of the role
    __syncwarp();
    if (threadIdx.x % 32 == 0)
      asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(address(pair_ + (tile & 1)))
                   : "memory");
  }
  __device__ void wait(int tile) const {
    asm volatile(
        "{\n .reg .pred done;\n"
        "again%=:\n"
#if __CUDA_ARCH__ >= 900
        " mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
#else
        " mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
#endif
        " @!done bra again%=;\n}" ::"r"(address(pair_ + (tile & 1))),
        "r"(tile >> 1 & 1)
        : "memory");
  }

 private:
  __device__ static uint32_t address(uint64_t* barrier) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  }
  uint64_t* pair_;
};

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

template <int count>
__device__ __forceinline__ void read_shared(float (&to)[count], const float* from) {
  if constexpr (count % 4 == 0) {
#pragma unroll
    for (int i = 0; i < count; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  } else {
    static_assert(count == 2);
    const float2 v = *reinterpret_cast<const float2*>(from);
    to[0] = v.x, to[1] = v.y;
  }
}

// What both roles know of their block.
template <class S>
struct ScanBlock {
  int64_t piece, sequence, begin, length, index;  // index: which piece of its sequence
  int slab, tiles;
  float* shared;
  TileBarrier full, done;

  __device__ ScanBlock(const ScanArguments<typename S::Element>& args, float* memory)
      : shared(memory),
        full(reinterpret_cast<uint64_t*>(memory + 2 * S::kStage)),
        done(reinterpret_cast<uint64_t*>(memory + 2 * S::kStage) + 2) {
    if (threadIdx.x == 0) full.init(S::kHelpers / 32), done.init(S::kScanners / 32);
    __syncthreads();
    piece = blockIdx.x / args.slabs;
    slab = static_cast<int>(blockIdx.x % args.slabs) * S::kWidth;
    const int64_t* row = args.pieces + piece * 4;
    sequence = row[0], begin = row[1], length = row[2], index = row[3];
    tiles = static_cast<int>((length + S::kTile - 1) / S::kTile);
  }
  __device__ float* inputs(int tile) const { return shared + (tile & 1) * S::kStage; }
  __device__ uint32_t* words(int tile) const {
    return reinterpret_cast<uint32_t*>(inputs(tile) + S::kTile * S::kWidth);
  }
  __device__ float* B(int tile) const { return inputs(tile) + S::kInputs; }
  __device__ float* C(int tile) const { return B(tile) + S::kMatrix; }
  __device__ float* y(int tile, int plane) const { return C(tile) + S::kMatrix + plane * S::kPlane; }
};

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
  __device__ void update(const Factors& factors, const Inputs& in, const Matrices& matrices, Outputs& y) {
    float before[kStates];
#pragma unroll
    for (int u = 0; u < kGroup; ++u) {
#pragma unroll
      for (int i = 0; i < kStates; ++i) before[i] = h[0][i];
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        if constexpr (kOutput == ScanOutput::ends_only) total[j] += in.delta[u][j];
#pragma unroll
        for (int i = 0; i < kStates; ++i) {  // (10)
          float product;
          if constexpr (S::kProducts)
            product = factors.product[u / 2][u % 2 * 2 + i];
          else
            product = in.input[u][j] * matrices.B[u][i];
          h[j][i] = fmaf(factors.decay[u][j][i], h[j][i], product);
        }
      }
      if constexpr (kOutput == ScanOutput::ends_only) {
        continue;
      } else if constexpr (kChannels == 1) {
        if (u % 2 == 0) continue;
        float sum[4] = {};
        project(sum, before, h[0], matrices.C[u / 2]);  // (11)
        y[u - 1][0] = sum[0], y[u][0] = sum[3];
      } else {
#pragma unroll
        for (int j = 0; j < kChannels; j += 2) {
          float sum[4] = {};
          project(sum, h[j], h[j + 1], matrices.C[u]);  // (11)
          y[u][j] = sum[0], y[u][j + 1] = sum[2];
        }
      }
    }
  }
  // The four lanes of a channel all have its y.
  __device__ void store(int tile, int t, const Outputs& y) const {
    float* to = block.y(tile, plane) + t * S::kOutRow + local;
    if constexpr (kOutput == ScanOutput::ends_only) {
      return;
    } else if constexpr (S::kProducts) {
#pragma unroll
      for (int u = 0; u < kGroup; u += 4) {
        const float low = quarter & 1 ? y[u + 1][0] : y[u][0], high = quarter & 1 ? y[u + 3][0] : y[u + 2][0];
        to[(u + quarter) * S::kOutRow] = quarter & 2 ? high : low;
      }
    } else if (quarter == 0) {
#pragma unroll
      for (int u = 0; u < kGroup; ++u) {
        float* at = to + u * S::kOutRow;
        if constexpr (kChannels == 1) *at = y[u][0];
        if constexpr (kChannels == 2) *reinterpret_cast<float2*>(at) = make_float2(y[u][0], y[u][1]);
        if constexpr (kChannels == 4) *reinterpret_cast<float4*>(at) = make_float4(y[u][0], y[u][1], y[u][2], y[u][3]);
      }
    }
  }

  __device__ void walk(int tile) {
    Inputs in, in_next, in_after;
    Matrices matrices, matrices_next;
    Factors factors, factors_next;
    Outputs out, out_before;
    load(in, tile, 0);
    if constexpr (S::kTile > kGroup) load(in_next, tile, kGroup);
    load(matrices, tile, 0);
    factor(factors, in);
#pragma unroll
    for (int t = 0; t < S::kTile; t += kGroup) {
      if (t + 2 * kGroup < S::kTile) load(in_after, tile, t + 2 * kGroup);
      if (t + kGroup < S::kTile) {
        load(matrices_next, tile, t + kGroup);
        factor(factors_next, in_next);
      }
      update(factors, in, matrices, out);
      if (t > 0) store(tile, t - kGroup, out_before);
      in = in_next, in_next = in_after, matrices = matrices_next, factors = factors_next;
#pragma unroll
      for (int u = 0; u < kGroup; ++u)
#pragma unroll
        for (int j = 0; j < kChannels; ++j) out_before[u][j] = out[u][j];
    }
    store(tile, S::kTile - kGroup, out_before);
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
    for (int tile = 0; tile < block.tiles; ++tile) {
      block.full.wait(tile);
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

// Neighbouring elements, 16 bytes of them, as they lie in memory, in whole registers: as elements the compiler would
// give each half of a register one of its own.
template <class T>
struct alignas(16) Strip {
  static constexpr int kCount = 16 / sizeof(T);
  uint32_t word[4];

  __device__ __forceinline__ static Strip filled(float value) {
    float all[kCount];
#pragma unroll
    for (float& one : all) one = value;
    Strip strip;
    strip.pack(all);
    return strip;
  }
  __device__ __forceinline__ void unpack(float (&to)[kCount]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        to[i] = __uint_as_float(word[i]);
      } else if constexpr (std::is_same_v<T, bf16>) {
        to[2 * i] = __uint_as_float(word[i] << 16);
        to[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
      } else {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(word[i]));
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
      }
    }
  }
  __device__ __forceinline__ void pack(const float (&from)[kCount]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>)
        word[i] = __float_as_uint(from[i]);
      else if constexpr (std::is_same_v<T, bf16>)
        reinterpret_cast<__nv_bfloat162&>(word[i]) = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
      else
        reinterpret_cast<__half2&>(word[i]) = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
    }
  }
  // Each bf16 in both halves of a word, as the bits of a float.
  __device__ __forceinline__ void twice(float (&to)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = __uint_as_float(__byte_perm(word[i / 2], 0, i % 2 ? 0x3232 : 0x1010));
  }
  __device__ __forceinline__ T* elements() { return reinterpret_cast<T*>(word); }
};

template <int count>
__device__ __forceinline__ void write_shared(float* to, const float (&from)[count]) {
#pragma unroll
  for (int i = 0; i < count; i += 4)
    *reinterpret_cast<float4*>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
}

template <class S, ScanOutput kOutput, bool kAligned>
struct Helper {
  using T = typename S::Element;
  static constexpr int kItems = S::kItems, kRows = S::kRows, kStrip = S::kStrip;
  static constexpr int kMatrixRow = S::kDepth / kStrip, kMatrixStrips = 2 * S::kTile * kMatrixRow,
                       kMatrixItems = (kMatrixStrips + S::kHelpers - 1) / S::kHelpers;
  // tf32 cuts the lower 13 bits of h off: 2^-11 of its last kept bit's value on average, which is 0.72 2^-11 of the
  // number. Giving that back halves the error.
  static constexpr float kCut = std::is_same_v<T, bf16> ? 1.0f - 0.7213f / 2048 : 1.0f;
  static constexpr Accuracy kAccuracy = std::is_same_v<T, bf16> ? Accuracy::bf16 : Accuracy::full;

  const ScanArguments<T>& args;
  const ScanBlock<S>& block;
  const int id = static_cast<int>(threadIdx.x) - S::kScanners, first = id / S::kStrips, channel;
  const bool inside;                  // all channels of the strip
  const T *x_row, *dt_row, *z_row;    // of the next tile to load
  const T* matrix_row[kMatrixItems];  // of B or C
  T* out_row;
  float D[kStrip] = {}, bias[kStrip] = {};
  Strip<T> x[kItems], dt[kItems], z[kItems], matrices[kMatrixItems];
  Strip<T> x_before[kItems], z_before[kItems];

  __device__ Helper(const ScanArguments<T>& arguments, const ScanBlock<S>& b)
      : args(arguments), block(b), channel(b.slab + id % S::kStrips * kStrip), inside(channel + kStrip <= arguments.e) {
    const int64_t t = block.begin + first;
    x_row = args.x[t] + channel, dt_row = args.dt[t] + channel, out_row = args.out[t] + channel;
    z_row = args.z ? args.z[t] + channel : nullptr;
#pragma unroll
    for (int k = 0; k < kMatrixItems; ++k) {
      const int64_t row = block.begin + matrix_token(k);
      matrix_row[k] = (is_B(k) ? args.B[row] : args.C[row]) + matrix_column(k);
    }
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (channel + j >= args.e) continue;
      if (args.D) D[j] = args.D[channel + j] * kCut;
      if (args.dt_bias) bias[j] = args.dt_bias[channel + j];
    }
  }
  __device__ int matrix_strip(int k) const { return id + k * S::kHelpers; }
  __device__ bool is_B(int k) const { return matrix_strip(k) < kMatrixStrips / 2; }
  __device__ bool is_strip(int k) const { return kMatrixStrips % S::kHelpers == 0 || matrix_strip(k) < kMatrixStrips; }
  __device__ int matrix_token(int k) const { return matrix_strip(k) / kMatrixRow % S::kTile; }
  __device__ int matrix_column(int k) const { return matrix_strip(k) % kMatrixRow * kStrip; }

  __device__ static Strip<T> load(const T* from, int count, float otherwise) {  // `count` elements are there
    Strip<T> strip = Strip<T>::filled(otherwise);
    if constexpr (kAligned) {
      if (count >= kStrip) strip = *reinterpret_cast<const Strip<T>*>(from);
    } else {
#pragma unroll
      for (int j = 0; j < kStrip; ++j)
        if (j < count) strip.elements()[j] = from[j];
    }
    return strip;
  }
  __device__ void load(int tile) {
    const int64_t after = block.length - static_cast<int64_t>(tile) * S::kTile;
    const bool gate = kOutput == ScanOutput::all && args.z;
    if (kAligned && inside && after >= S::kTile && args.n == S::kDepth) {
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        x[k] = *reinterpret_cast<const Strip<T>*>(x_row), x_row += kRows * args.x.stride;
        dt[k] = *reinterpret_cast<const Strip<T>*>(dt_row), dt_row += kRows * args.dt.stride;
        if (gate) z[k] = *reinterpret_cast<const Strip<T>*>(z_row), z_row += kRows * args.z.stride;
      }
#pragma unroll
      for (int k = 0; k < kMatrixItems; ++k)
        if (is_strip(k)) matrices[k] = *reinterpret_cast<const Strip<T>*>(matrix_row[k]);
    } else {
      // Beyond the piece's end Delta is softplus(-infinity) = 0: the state passes unchanged.
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const int count = first + k * kRows < after ? args.e - channel : 0;
        x[k] = load(x_row, count, 0.0f), x_row += kRows * args.x.stride;
        dt[k] = load(dt_row, count, -INFINITY), dt_row += kRows * args.dt.stride;
        if (gate) z[k] = load(z_row, count, 0.0f), z_row += kRows * args.z.stride;
      }
#pragma unroll
      for (int k = 0; k < kMatrixItems; ++k)
        matrices[k] = load(matrix_row[k], is_strip(k) && matrix_token(k) < after ? args.n - matrix_column(k) : 0, 0.0f);
    }
#pragma unroll
    for (int k = 0; k < kMatrixItems; ++k) matrix_row[k] += S::kTile * (is_B(k) ? args.B.stride : args.C.stride);
  }

  __device__ void prepare(int tile) const {
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      float input[kStrip], delta[kStrip];
      x[k].unpack(input);
      dt[k].unpack(delta);
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        delta[j] = softplus_fast<kAccuracy>(delta[j] + bias[j]);  // (9)
        input[j] *= delta[j];
      }
      // In the order in which Scanner::load reads them.
      const int t = first + k * kRows, local = channel - block.slab;
      if constexpr (S::kProducts) {
        write_shared(block.inputs(tile) + t * S::kWidth + local, delta);
        float words[2 * kStrip];
        split(words, input);
        write_shared(reinterpret_cast<float*>(block.words(tile) + t * S::kWordRow + local * 2), words);
      } else {
        float both[2 * kStrip];
#pragma unroll
        for (int j = 0; j < kStrip; ++j) {
          const int at = j / S::kChannels * 2 * S::kChannels + j % S::kChannels;
          both[at] = delta[j], both[at + S::kChannels] = input[j];
        }
        write_shared(block.inputs(tile) + (t * S::kWidth + local) * 2, both);
      }
    }
#pragma unroll
    for (int k = 0; k < kMatrixItems; ++k) {
      if (!is_strip(k)) continue;
      float value[kStrip];
      matrices[k].unpack(value);
      if constexpr (S::kProducts)
        if (is_B(k)) matrices[k].twice(value);
      write_shared(block.B(tile) + matrix_strip(k) * kStrip, value);
    }
  }
  // A float is the sum of three bf16, each the upper half of what the ones before leave: products of them with B, which
  // is a bf16 already, are as exact as in f32. Two words a channel: (hi, mid), (lo, 0).
  __device__ static void split(float (&words)[2 * kStrip], const float (&input)[kStrip]) {
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      const uint32_t hi = __float_as_uint(input[j]);
      const float rest = input[j] - __uint_as_float(hi & 0xffff0000u);
      const uint32_t mid = __float_as_uint(rest);
      const float last = rest - __uint_as_float(mid & 0xffff0000u);
      words[2 * j] = __uint_as_float(__byte_perm(hi, mid, 0x7632));
      words[2 * j + 1] = __uint_as_float(__float_as_uint(last) >> 16);
    }
  }

  // y (11) to out (12). y lacks what tf32 cut off; `D` was made smaller by as much, and dividing by kCut mends both.
  template <bool kGate>
  __device__ void finish(int tile) {
    const float* from = block.y(tile, 0) + first * S::kOutRow + channel - block.slab;
    const int64_t after = block.length - static_cast<int64_t>(tile) * S::kTile;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      float y[kStrip], input[kStrip], gate[kStrip];
      read_shared(y, from + k * kRows * S::kOutRow);
#pragma unroll
      for (int plane = 1; plane < S::kStateWarps; ++plane) {
        float part[kStrip];
        read_shared(part, from + k * kRows * S::kOutRow + plane * S::kPlane);
#pragma unroll
        for (int j = 0; j < kStrip; ++j) y[j] += part[j];
      }
      x_before[k].unpack(input);
      z_before[k].unpack(gate);
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        y[j] = fmaf(D[j], input[j], y[j]);
        if (kGate)
          y[j] *= gate[j] * reciprocal_fast(fmaf(kCut, exp2_fast(gate[j] * -kLog2E), kCut));
        else
          y[j] *= 1 / kCut;
      }
      Strip<T> out;
      out.pack(y);
      if (first + k * kRows < after) {
        if (kAligned) {
          if (inside) *reinterpret_cast<Strip<T>*>(out_row) = out;
        } else {
#pragma unroll
          for (int j = 0; j < kStrip; ++j)
            if (channel + j < args.e) out_row[j] = out.elements()[j];
        }
      }
      out_row += kRows * args.out.stride;
    }
  }

  // Waiting for a tile's y also makes its half of shared memory free for the tile after the next. y itself is safe: the
  // helpers announce that next tile only after they have read this one's.
  __device__ void collect(int tile) {
    block.done.wait(tile);
    if constexpr (kOutput == ScanOutput::all) args.z ? finish<true>(tile) : finish<false>(tile);
  }

  __device__ void run() {
    load(0);
    for (int tile = 0; tile < block.tiles; ++tile) {
      prepare(tile);
      block.full.arrive(tile);
      Strip<T> x_now[kItems], z_now[kItems];
#pragma unroll
      for (int k = 0; k < kItems; ++k) x_now[k] = x[k], z_now[k] = z[k];
      if (tile + 1 < block.tiles) load(tile + 1);
      if (tile > 0) collect(tile - 1);
#pragma unroll
      for (int k = 0; k < kItems; ++k) x_before[k] = x_now[k], z_before[k] = z_now[k];
    }
    collect(block.tiles - 1);
  }
};

template <class S, ScanOutput kOutput, bool kAligned>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    scan_forward_kernel(const __grid_constant__ ScanArguments<typename S::Element> args) {
  extern __shared__ __align__(16) float scan_shared[];
  const ScanBlock<S> block(args, scan_shared);
  if (threadIdx.x < S::kScanners)
    Scanner<S, kOutput>(args, block).run();
  else
    Helper<S, kOutput, kAligned>(args, block).run();
}

}  // namespace ssm::cuda
