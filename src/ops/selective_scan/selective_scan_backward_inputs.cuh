// What the selective scan's backward does element by element: a block's inputs from memory to shared memory, (9) and
// (12), and from there the gradients of the elements, (16), (17) and (19), and the block's shares of dB and dC.
#pragma once

#include "core/cuda_kernel.cuh"
#include "ops/selective_scan/selective_scan.h"
#include "ops/selective_scan/selective_scan_math.cuh"

namespace ssm::cuda {
namespace {

constexpr int kStates = 16;                // states a kernel looks at; more are walked in groups of 16
constexpr int kWarps = 4, kThreads = 128;  // of a block
constexpr int kWarpChannels = 8, kBlockChannels = kWarps * kWarpChannels;
constexpr int kChunk = static_cast<int>(kScanChunkCuda);
constexpr int kQuads = kBlockChannels / 4;  // a thread has four channels of one token of a chunk
static_assert(kChunk * kQuads == kThreads);
constexpr float kLn2 = 0.6931471805599453f;

// A run of tokens of one sequence that one block walks alone.
struct Piece {
  int64_t token;   // its first row
  int64_t chunk;   // its first row of `starts`
  int32_t tokens;  // not 0; all but a sequence's last piece are whole chunks
  int32_t slot;
  int32_t last;   // whether its sequence ends here
  int32_t first;  // whether its sequence begins here
};
// A chunk of a piece: where it begins in the rows and in `starts`, how many tokens it has, and which of two buffers it
// uses.
struct Chunk {
  int32_t token, start, tokens, buffer;
};

template <class T>
struct BackwardArgs {
  Rows<const T> x, dt, z, B, C, dout;  // B and C begin at the group's first state
  Rows<T> dx, ddt, dz, out;
  const float *A_log, *D, *dt_bias;
  const Rounded<T>* starts;  // (chunks, n, e)
  float* dh;
  const Piece* pieces;
  const int32_t* workers;      // (workers + 1): worker i walks pieces [workers[i], workers[i + 1])
  float* carried;              // (pieces, n, e): the gradient that enters a piece from its right; null: it is dh's or 0
  float* delta_sums;           // (pieces, e): the sum of delta over a piece
  float *dA, *dD, *dbias;      // (workers, 16, e), (workers, e) twice: shares of the workers
  Rounded<T>* dBC;             // (blocks, t, 32): shares of the blocks of channels; dB, then dC
  float *y, *dinput, *ddelta;  // (t, e): sums over the groups of states so far; null with one group
  int64_t tokens;
  int32_t e, n, group, group_states;  // channels, states; the first state of this group; how many it has
  bool first_group, last_group;
  bool aligned;  // rows begin on 16 bytes, and the group has all 16 states
};

// carried_only: of each piece but a sequence's first, the gradient that leaves it to its left when nothing enters from
// its right, and the sum of delta.
enum class BackwardOutput { all, carried_only };

__device__ __forceinline__ uint32_t pack16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ float low16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Neighbours of a row, on an aligned address. A struct of bf16 would go out in pieces of 2 bytes.
template <int kCount, class T>
__device__ __forceinline__ void unpack(float (&to)[kCount], const T* from) {
  if constexpr (sizeof(T) == 4) {
    load_floats(from, to);
  } else {
    const auto pack = *reinterpret_cast<const Pack<uint32_t, kCount / 2>*>(from);
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const uint32_t pair = pack.value[i / 2];
      if constexpr (std::is_same_v<T, bf16>) {
        to[i] = low16(pair), to[i + 1] = high16(pair);
      } else {
        const float2 both = __half22float2(reinterpret_cast<const __half2&>(pair));
        to[i] = both.x, to[i + 1] = both.y;
      }
    }
  }
}
template <class T>
__device__ __forceinline__ void pack(T* to, const float (&from)[4]) {
  if constexpr (std::is_same_v<T, bf16>) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack16(from[0], from[1]), pack16(from[2], from[3]));
  } else if constexpr (std::is_same_v<T, f16>) {
    const __half2 low = __floats2half2_rn(from[0], from[1]), high = __floats2half2_rn(from[2], from[3]);
    *reinterpret_cast<uint2*>(to) =
        make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
  } else {
    store_floats(to, from);
  }
}

// The four states of a lane whose index in its group of four is `quarter`, as an operand of a tensor instruction has
// them: two neighbours, and the two 8 further. B and C lie in shared memory in this order.
__device__ __forceinline__ int state_of(int quarter, int j) { return 2 * quarter + j % 2 + j / 2 * 8; }

template <class T>
struct alignas(16) SharedBackward {
  static constexpr bool kSixteen = std::is_same_v<T, bf16>;
  static constexpr int kTile = kSixteen ? 16 : 8;  // tokens whose states and decays are in registers together
  static constexpr int kBlocks = 3;                // an SM: 168 registers a thread
  // Rows of which lanes four apart read the same column begin in different banks.
  static constexpr int kRow = 36, kRow16 = 20, kStartRow = kBlockChannels + 16 / static_cast<int>(sizeof(Rounded<T>));

  // As they come from memory. x and the states are looked at while the next chunk's are on their way.
  T x[2][kChunk][kBlockChannels];
  Rounded<T> starts[2][kStates][kStartRow];
  T dt[kChunk][kBlockChannels], dout[kChunk][kBlockChannels], z[kChunk][kBlockChannels], raw_B[kChunk][kStates],
      raw_C[kChunk][kStates];
  // Of an element: delta and delta x; delta and dy; what ddt is multiplied with, (17), and dz, (19).
  float2 delta_input[kChunk][kBlockChannels], delta_dy[kChunk][kBlockChannels];
  float slope[kChunk][kBlockChannels], gate[kChunk][kBlockChannels];
  float open[kChunk][kBlockChannels];  // silu(z), where `out` is wanted
  float B[kChunk][kStates], C[kChunk][kStates];
  // dy and delta x in pairs of bf16.
  uint32_t dy16[kChunk][kRow16], input16[kChunk][kRow16];
  float second_start[kThreads][4];  // the state before a lane's second tile
  // Sums over states; sums over a warp's channels: dB, then dC.
  float y[kChunk][kRow], dinput[kChunk][kRow], ddelta[kChunk][kRow], dBC[kWarps][kChunk][kRow];
  float dD[kThreads][4], dbias[kThreads][4];  // a thread's own sums
  float D[kBlockChannels], bias[kBlockChannels];

  // Two channels a slot: a quarter of a warp that writes every other slot must not meet itself in a bank.
  __device__ __forceinline__ static int slot(int channel) { return channel ^ (channel >> 4 << 1); }
};

template <class T>
__device__ __forceinline__ T* row_of(const Rows<T>& rows, int32_t row, int32_t column) {
  uint64_t at;
  asm("mad.wide.s32 %0, %1, %2, %3;"
      : "=l"(at)
      : "r"(row), "r"(static_cast<int32_t>(rows.stride) * static_cast<int32_t>(sizeof(T))), "l"(rows.data + column));
  return reinterpret_cast<T*>(at);
}

// 16 bytes of a row on their way into shared memory: at once, or one by one and `otherwise` from `count` on.
template <bool kAtOnce, class T>
__device__ __forceinline__ void fetch_part(T* to, const T* from, int count, float otherwise = 0) {
  if constexpr (kAtOnce) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
                 "l"(from)
                 : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < 16 / static_cast<int>(sizeof(T)); ++i) to[i] = i < count ? from[i] : from_float<T>(otherwise);
  }
}

template <class T, BackwardOutput kOutput>
struct BlockInputs {
  using Shared = SharedBackward<T>;
  static constexpr bool kAll = kOutput == BackwardOutput::all;
  // tf32 cuts what is summed over states after 11 bits, by 0.72 2^-11 on average, which this mends.
  static constexpr float kMend = Shared::kSixteen ? 1 + 0.72f / 2048 : 1;
  const BackwardArgs<T>& args;
  Shared& shared;

  // Asked for anew in every phase: kept through the walk between them, what follows from it would cost it registers.
  __device__ __forceinline__ static uint32_t thread() {
    uint32_t index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
  }
  __device__ static int block_channel() { return static_cast<int>(blockIdx.x) * kBlockChannels; }
  __device__ bool whole(const Chunk& chunk) const {
    return args.aligned && block_channel() + kBlockChannels <= args.e && chunk.tokens == kChunk;
  }

  __device__ BlockInputs(const BackwardArgs<T>& arguments, Shared& memory) : args(arguments), shared(memory) {
    const uint32_t thread = BlockInputs::thread();
    store_floats(shared.dD[thread], {0, 0, 0, 0});
    store_floats(shared.dbias[thread], {0, 0, 0, 0});
    if (thread < kBlockChannels) {
      const int c = block_channel() + static_cast<int>(thread);
      shared.D[thread] = args.D && c < args.e ? args.D[c] : 0.0f;
      shared.bias[thread] = args.dt_bias && c < args.e ? args.dt_bias[c] : 0.0f;
    }
  }

  // A chunk's inputs on their way. Beyond its tokens delta will be softplus(-infinity) = 0.
  __device__ __forceinline__ void fetch(const Chunk& chunk) const {
    if (whole(chunk))
      fetch_parts<true>(chunk);
    else
      fetch_parts<false>(chunk);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  __device__ static void wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
  template <bool kWhole>
  __device__ __forceinline__ void fetch_parts(const Chunk& chunk) const {
    constexpr uint32_t kPart = 16 / sizeof(T), kParts = kBlockChannels / kPart, kStateParts = kStates / kPart,
                       kStartPart = 16 / sizeof(Rounded<T>), kStartParts = kBlockChannels / kStartPart;
    const uint32_t thread = BlockInputs::thread();
    const bool lower = thread < kThreads / 2;
    const int t = static_cast<int>(thread / kParts % kChunk), c = static_cast<int>(thread % kParts * kPart);
    const int count = t < chunk.tokens ? args.e - block_channel() - c : 0;
    const auto fetch_rows = [&](T* to, const Rows<const T>& rows, float otherwise) {
      if (rows)
        fetch_part<kWhole>(to + t * kBlockChannels + c, row_of(rows, chunk.token + t, block_channel() + c), count,
                           otherwise);
    };
    if constexpr (kChunk * kParts == kThreads) {
      fetch_rows(shared.x[chunk.buffer][0], args.x, 0);
      fetch_rows(shared.dt[0], args.dt, -INFINITY);
      fetch_rows(shared.dout[0], args.dout, 0);
      fetch_rows(shared.z[0], args.z, 0);
    } else {
      fetch_rows(lower ? shared.x[chunk.buffer][0] : shared.dt[0], lower ? args.x : args.dt, lower ? 0 : -INFINITY);
      fetch_rows(lower ? shared.dout[0] : shared.z[0], lower ? args.dout : args.z, 0);
    }
    if (thread < 2 * kChunk * kStateParts) {
      const bool is_B = thread < kChunk * kStateParts;
      const int of = static_cast<int>(thread / kStateParts % kChunk),
                n = static_cast<int>(thread % kStateParts * kPart);
      fetch_part<kWhole>(is_B ? &shared.raw_B[of][n] : &shared.raw_C[of][n],
                         row_of(is_B ? args.B : args.C, chunk.token + of, n),
                         of < chunk.tokens ? args.group_states - n : 0);
    }
    if (kAll && (kStates * kStartParts == kThreads || !lower)) {  // the lower half may have B and C
      const int n = static_cast<int>(thread / kStartParts % kStates),
                first = block_channel() + static_cast<int>(thread % kStartParts * kStartPart);
      const int64_t state = static_cast<int64_t>(chunk.start) * args.n + args.group + n;
      fetch_part<kWhole>(&shared.starts[chunk.buffer][n][thread % kStartParts * kStartPart],
                         args.starts + state * args.e + first, n < args.group_states ? args.e - first : 0);
    }
  }

  __device__ __forceinline__ void prepare(const Chunk& chunk) const {
    const uint32_t thread = BlockInputs::thread();
    const int t = static_cast<int>(thread / kQuads), c = static_cast<int>(thread % kQuads * 4);
    float bias[4], dt[4], dy[4], delta[4], slope[4], gate[4] = {}, open[4] = {1, 1, 1, 1};
    load_floats(&shared.bias[c], bias);
    unpack(dt, &shared.dt[t][c]);
    unpack(dy, &shared.dout[t][c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) delta_and_slope(dt[i] + bias[i], delta[i], slope[i]);
    if (args.z) {
      float z[4];
      unpack(z, &shared.z[t][c]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float sigmoid = reciprocal_fast(1.0f + exp2_fast(z[i] * -kLog2E)), gated = dy[i] * sigmoid;
        dy[i] = gated * z[i];
        gate[i] = gated + dy[i] - dy[i] * sigmoid;
        open[i] = sigmoid * z[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2)
      store_floats(&shared.delta_dy[t][Shared::slot(c + i)].x, {delta[i], dy[i], delta[i + 1], dy[i + 1]});
    prepare_matrices(thread);
    if constexpr (kAll) {
      float x[4], input[4];
      unpack(x, &shared.x[chunk.buffer][t][c]);
#pragma unroll
      for (int i = 0; i < 4; ++i) input[i] = delta[i] * x[i];
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        store_floats(&shared.delta_input[t][Shared::slot(c + i)].x, {delta[i], input[i], delta[i + 1], input[i + 1]});
      store_floats(&shared.slope[t][c], slope);
      store_floats(&shared.gate[t][c], gate);
      if (args.out) store_floats(&shared.open[t][c], open);
      if constexpr (Shared::kSixteen) {
        *reinterpret_cast<uint2*>(&shared.dy16[t][c / 2]) = make_uint2(pack16(dy[0], dy[1]), pack16(dy[2], dy[3]));
        *reinterpret_cast<uint2*>(&shared.input16[t][c / 2]) =
            make_uint2(pack16(input[0], input[1]), pack16(input[2], input[3]));
      }
    }
  }
  // A lane's states of B or C.
  __device__ __forceinline__ void prepare_matrices(uint32_t thread) const {
#pragma unroll
    for (uint32_t begin = 0; begin < 8 * kChunk; begin += kThreads) {
      const uint32_t at = begin + thread, t = at / 4 % kChunk, quarter = at % 4;
      const bool is_B = at < 4 * kChunk;
      if (is_B && !kAll) continue;
      const T* from = (is_B ? shared.raw_B : shared.raw_C)[t] + 2 * quarter;
      float low[2], high[2];
      unpack(low, from);
      unpack(high, from + 8);
      store_floats((is_B ? shared.B : shared.C)[t] + 4 * quarter, {low[0], low[1], high[0], high[1]});
    }
  }
  // Delta (9) and its derivative, sigmoid(v).
  __device__ __forceinline__ static void delta_and_slope(float v, float& delta, float& slope) {
    constexpr Accuracy kAccuracy = Shared::kSixteen ? Accuracy::bf16 : Accuracy::full;
    delta = softplus_fast<kAccuracy>(v);
    const float u = exp2_fast(-fabsf(v) * kLog2E), part = reciprocal_fast(1.0f + u);
    slope = v < 0 ? u * part : part;
  }

  // Adds what the groups of states so far gave to a sum over states, or keeps the sum for the next.
  __device__ __forceinline__ void add_group(float* total, float (&sum)[4], int channels) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= channels) break;
      if (!args.first_group) sum[i] += total[i];
      if (!args.last_group) total[i] = sum[i];
    }
  }
  template <bool kWhole>
  __device__ __forceinline__ void store_row(const Rows<T>& rows, int row, int channel, const float (&from)[4]) const {
    if (!rows) return;
    T* to = row_of(rows, row, channel);
    if constexpr (kWhole) {
      pack(to, from);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (channel + i < args.e) to[i] = from_float<T>(from[i]);
    }
  }

  __device__ __forceinline__ void finish(const Chunk& chunk) const {
    const uint32_t thread = BlockInputs::thread();
    if (whole(chunk) && !args.y)
      finish_as<true>(chunk, thread);
    else if (static_cast<int>(thread / kQuads) < chunk.tokens)
      finish_as<false>(chunk, thread);
  }
  template <bool kWhole>
  __device__ __forceinline__ void finish_as(const Chunk& chunk, uint32_t thread) const {
    const int t = static_cast<int>(thread / kQuads), c = static_cast<int>(thread % kQuads * 4), row = chunk.token + t,
              channel = block_channel() + c;
    if (args.dBC) {
      float total[4];
      load_floats(&shared.dBC[0][t][c], total);
#pragma unroll
      for (int w = 1; w < kWarps; ++w) {
        float share[4];
        load_floats(&shared.dBC[w][t][c], share);
#pragma unroll
        for (int i = 0; i < 4; ++i) total[i] += share[i];
      }
      pack(args.dBC + (blockIdx.x * args.tokens + row) * (2 * kStates) + c, total);
    }
    if (!kWhole && channel >= args.e) return;
    float y[4], dinput[4], ddelta[4];
    load_floats(&shared.y[t][c], y);
    load_floats(&shared.dinput[t][c], dinput);
    load_floats(&shared.ddelta[t][c], ddelta);
    if (!kWhole && args.y) {
      const int64_t at = static_cast<int64_t>(row) * args.e + channel;
      add_group(args.y + at, y, args.e - channel);
      add_group(args.dinput + at, dinput, args.e - channel);
      add_group(args.ddelta + at, ddelta, args.e - channel);
      if (!args.last_group) return;
    }
    float x[4], D[4], slope[4], gate[4], dx[4], ddt[4], dz[4], dD[4], dbias[4];
    unpack(x, &shared.x[chunk.buffer][t][c]);
    load_floats(&shared.D[c], D);
    load_floats(&shared.slope[t][c], slope);
    load_floats(&shared.gate[t][c], gate);
    load_floats(shared.dD[thread], dD);
    load_floats(shared.dbias[thread], dbias);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      float pair[4];
      load_floats(&shared.delta_dy[t][Shared::slot(c + i)].x, pair);
#pragma unroll
      for (int k = i; k < i + 2; ++k) {
        const float delta = pair[2 * (k - i)], dy = pair[2 * (k - i) + 1];
        dz[k] = gate[k] * (y[k] * kMend + D[k] * x[k]);                       // (19)
        dx[k] = dinput[k] * (delta * kMend) + dy * D[k];                      // (16)
        ddt[k] = (ddelta[k] * kLn2 + dinput[k] * x[k]) * (slope[k] * kMend);  // (17)
        dD[k] += dy * x[k];
        dbias[k] += ddt[k];
      }
    }
    store_floats(shared.dD[thread], dD);
    store_floats(shared.dbias[thread], dbias);
    if (args.out) {
      float open[4], out[4];
      load_floats(&shared.open[t][c], open);
#pragma unroll
      for (int k = 0; k < 4; ++k) out[k] = (y[k] * kMend + D[k] * x[k]) * open[k];  // (12)
      store_row<kWhole>(args.out, row, channel, out);
    }
    store_row<kWhole>(args.dz, row, channel, dz);
    store_row<kWhole>(args.dx, row, channel, dx);
    store_row<kWhole>(args.ddt, row, channel, ddt);
  }

  // dD and ddt_bias of this worker.
  __device__ __forceinline__ void store_totals() const {
    const uint32_t thread = BlockInputs::thread();
    __syncthreads();
    const int c = block_channel() + static_cast<int>(thread);
    if (thread >= kBlockChannels || c >= args.e) return;
    float dD = 0, dbias = 0;
    for (int t = 0; t < kChunk; ++t) {
      dD += shared.dD[t * kQuads + thread / 4][thread % 4];
      dbias += shared.dbias[t * kQuads + thread / 4][thread % 4];
    }
    args.dD[static_cast<int64_t>(blockIdx.y) * args.e + c] = dD;
    args.dbias[static_cast<int64_t>(blockIdx.y) * args.e + c] = dbias;
  }
};

}  // namespace
}  // namespace ssm::cuda
