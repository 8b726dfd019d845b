// Kernels of the selective scan's backward, (13) to (19) of README.md, whose section "On the GPU, backward" says how
// they share the work. One block walks one piece of a sequence, last chunk first, for a block of channels; 16 states
// at a time. Included by selective_scan_backward_cuda.cu alone.
#pragma once

#include "core/cuda_kernel.cuh"
#include "ops/selective_scan/selective_scan.h"

namespace ssm::cuda {
namespace {

constexpr int kStates = 16;  // states a kernel looks at; more are walked in groups of 16
constexpr int kWarps = 4;    // of a block; each has its own channels
constexpr int kTile = 8;     // tokens whose states and decays are in registers together; the rows of an accumulator
constexpr int kChunk = static_cast<int>(kScanChunk);
constexpr int kTiles = kChunk / kTile;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// A lane walks 2 channels and 4 states of each: lane / 4, its row, says which channels, lane % 4 which states.
constexpr int kWarpChannels = 16;
constexpr int kBlockChannels = kWarps * kWarpChannels;

// A run of tokens of one sequence that one block walks alone.
struct Piece {
  int64_t token;   // its first row
  int64_t chunk;   // its first row of `starts`
  int32_t tokens;  // not 0; all but a sequence's last piece are whole chunks
  int32_t slot;
  int32_t last;   // whether its sequence ends here
  int32_t first;  // whether its sequence begins here
};

template <class T>
struct BackwardArgs {
  Rows<const T> x, dt, z, B, C, dout;  // B and C begin at the group's first state
  Rows<T> dx, ddt, dz;
  const float *A_log, *D, *dt_bias, *starts;
  float* dh;
  const Piece* pieces;
  const int32_t* workers;      // (workers + 1): worker i walks pieces [workers[i], workers[i + 1])
  float* carried;              // (pieces, n, e): the gradient that enters a piece from its right; null: it is dh's or 0
  float* delta_sums;           // (pieces, e): the sum of delta over a piece
  float *dA, *dD, *dbias;      // (workers, 16, e), (workers, e) twice: shares of the workers
  float* dBC;                  // (blocks, t, 32): shares of the blocks of channels; dB, then dC
  float *y, *dinput, *ddelta;  // (t, e): sums over the groups of states so far; null with one group
  int64_t tokens, e;
  int32_t n, group, group_states;  // all states; the first of this group; how many it has
  bool first_group, last_group;
  bool aligned, aligned_BC;  // rows begin on 4 elements, and on 16 bytes
};

__device__ __forceinline__ float exp2_fast(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}
__device__ __forceinline__ float log2_fast(float v) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}
__device__ __forceinline__ float sigmoid(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1 + exp2_fast(-v * kLog2E)));
  return result;
}
__device__ __forceinline__ float softplus(float v) {
  // 1 + e^v loses what a small e^v had; the series of log1p keeps it.
  const float power = exp2_fast(v * kLog2E);
  const float series = power * (1 - power * (0.5f - power * (1.0f / 3 - power * 0.25f)));
  const float result = power < 0.03f ? series : log2_fast(1 + power) * kLn2;
  return v > 20 ? v : result;
}
// The derivative of softplus where it has the value delta: 1 - e^-delta.
__device__ __forceinline__ float softplus_slope(float delta) {
  const float series = delta * (1 - delta * (0.5f - delta * (1.0f / 6 - delta * (1.0f / 24))));
  return delta < 0.06f ? series : 1 - exp2_fast(-delta * kLog2E);
}

// d += a b on tf32 numbers, (16, 8) += (16, 8) (8, 8). Lane l holds a at rows l / 4 (a0, a2) and l / 4 + 8 (a1, a3) and
// columns l % 4 and l % 4 + 4 (a2, a3); b at rows l % 4 and l % 4 + 4, column l / 4; d at rows l / 4 and l / 4 + 8 (d2,
// d3), columns 2 (l % 4) and the next.
__device__ __forceinline__ void multiply_add(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
// What tf32, which has the first 11 bits of a number, leaves out.
__device__ __forceinline__ float rest(float v) { return v - __uint_as_float(__float_as_uint(v) & 0xffffe000u); }
// The same with numbers in a or in b, zeros and ones in the other; exactly enough for f32 in two parts.
template <bool kExact>
__device__ __forceinline__ void add_rows(float (&d)[4], const float (&a)[4], const float (&ones)[2]) {
  multiply_add(d, a, ones);
  if constexpr (kExact) multiply_add(d, {rest(a[0]), rest(a[1]), rest(a[2]), rest(a[3])}, ones);
}
template <bool kExact>
__device__ __forceinline__ void add_columns(float (&d)[4], const float (&ones)[4], float b0, float b1) {
  multiply_add(d, ones, {b0, b1});
  if constexpr (kExact) multiply_add(d, ones, {rest(b0), rest(b1)});
}

// Neighbouring numbers of a row, as they are in memory, so that several loads are under way before the first is looked
// at.
template <class T, int kCount>
struct Raw {
  static constexpr int kWords = kCount * sizeof(T) / 4;
  uint32_t words[kWords];

  __device__ __forceinline__ Raw<T, 2> pair(int i) const {
    if constexpr (sizeof(T) == 4)
      return {words[2 * i], words[2 * i + 1]};
    else
      return {words[i]};
  }
  __device__ __forceinline__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(words[i]);
    if constexpr (std::is_same_v<T, bf16>)
      return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    if constexpr (std::is_same_v<T, f16>)
      return __half2float(__ushort_as_half(static_cast<unsigned short>(words[i / 2] >> (i % 2 * 16))));
  }
};
// At once, or one by one and 0 from `count` on.
template <int kCount, class T>
__device__ __forceinline__ Raw<T, kCount> read(const T* from, int64_t count, bool at_once) {
  Raw<T, kCount> raw;
  if (at_once) {
    const auto pack = *reinterpret_cast<const Pack<uint32_t, raw.kWords>*>(from);
#pragma unroll
    for (int i = 0; i < raw.kWords; ++i) raw.words[i] = pack.value[i];
    return raw;
  }
#pragma unroll
  for (int i = 0; i < raw.kWords; ++i) {
    raw.words[i] = 0;
    if constexpr (sizeof(T) == 4) {
      if (i < count) raw.words[i] = reinterpret_cast<const uint32_t*>(from)[i];
    } else {
      if (2 * i < count) raw.words[i] = reinterpret_cast<const uint16_t*>(from)[2 * i];
      if (2 * i + 1 < count)
        raw.words[i] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(from)[2 * i + 1]) << 16;
    }
  }
  return raw;
}
// Two neighbours of a row, or the first of them alone.
template <class T>
__device__ __forceinline__ void store_pair(T* to, const float (&from)[2], bool both, bool aligned) {
  if (both && aligned) {
    if constexpr (sizeof(T) == 4) {
      store_floats(to, from);
    } else {
      using Pair = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2>;
      Pair pair;
      if constexpr (std::is_same_v<T, bf16>)
        pair = __floats2bfloat162_rn(from[0], from[1]);
      else
        pair = __floats2half2_rn(from[0], from[1]);
      *reinterpret_cast<Pair*>(to) = pair;
    }
    return;
  }
  to[0] = from_float<T>(from[0]);
  if (both) to[1] = from_float<T>(from[1]);
}

// B or C of a chunk, 0 beyond its tokens and states: (64, 16), a part for each thread.
template <class T>
struct TilePart {
  static constexpr int kPack = 16 / sizeof(T), kPacks = kStates / kPack, kParts = kChunk * kPacks / (32 * kWarps);
  Raw<T, kPack> raw[kParts];

  __device__ void load(const BackwardArgs<T>& args, const Rows<const T>& rows, int64_t token, int tokens) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * 32 * kWarps, t = at / kPacks, n = at % kPacks * kPack;
      const int count = t < tokens ? args.group_states - n : 0;
      raw[i] = read<kPack>(rows[token + t] + n, count, args.aligned_BC && count >= kPack);
    }
  }
  __device__ void store(float* to) const {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      float values[kPack];
#pragma unroll
      for (int j = 0; j < kPack; ++j) values[j] = raw[i][j];
      store_floats(to + (static_cast<int>(threadIdx.x) + i * 32 * kWarps) * kPack, values);
    }
  }
};

template <class T>
struct alignas(16) SharedBackward {
  float B[kChunk][kStates], C[kChunk][kStates];
  struct Warp {
    float delta[kChunk][8][4];  // of each row's two channels: delta, delta x, delta, delta x
    float dy[kChunk][8][2];
    float dz[kChunk][8][2];  // what (19) multiplies y + D x with
    Raw<T, 2> x[kChunk][8];
    // The state before each tile; once a tile is walked, its sums of dB and dC: (8, 32), 256 numbers.
    float starts[kTiles][2][32][4];
  } warps[kWarps];
};

// The chunk's inputs for this warp's channels, one token and four channels a lane. Tokens beyond the chunk keep the
// state: delta, x and dy are 0 there. kWhole: all tokens and channels are there, in aligned rows.
template <bool kWhole, class T>
__device__ __forceinline__ void prepare(const BackwardArgs<T>& args, int64_t token, int tokens, int64_t channel,
                                        const float (&bias)[4], int lane, typename SharedBackward<T>::Warp& warp) {
  const int row = lane / 4, quarter = lane % 4;
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (int begin = row; begin < kChunk; begin += kAtOnce * kTile) {
    Raw<T, 4> x[kAtOnce], dt[kAtOnce], z[kAtOnce], dout[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int t = begin + u * kTile;
      const int64_t at = token + t, count = t < tokens ? args.e - channel : 0;
      const bool at_once = kWhole || (args.aligned && count >= 4);
      x[u] = read<4>(args.x[at] + channel, count, at_once);
      dt[u] = read<4>(args.dt[at] + channel, count, at_once);
      dout[u] = read<4>(args.dout[at] + channel, count, at_once);
      if (args.z) z[u] = read<4>(args.z[at] + channel, count, at_once);
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int t = begin + u * kTile;
      const float inside = kWhole || t < tokens ? 1.0f : 0.0f;
      float delta[4], input[4], dy[4], dz[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        delta[i] = inside * softplus(dt[u][i] + bias[i]);
        input[i] = delta[i] * x[u][i];
        dy[i] = dout[u][i];
      }
      if (args.z) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float gate = sigmoid(z[u][i]), gated = dy[i] * gate;
          dy[i] = gated * z[u][i];
          dz[i] = gated + dy[i] - dy[i] * gate;
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const int to = 2 * quarter + j / 2;
        store_floats(warp.delta[t][to], {delta[j], input[j], delta[j + 1], input[j + 1]});
        store_floats(warp.dy[t][to], {dy[j], dy[j + 1]});
        store_floats(warp.dz[t][to], {dz[j], dz[j + 1]});
        warp.x[t][to] = x[u].pair(j / 2);
      }
    }
  }
}

// The lines of the chunk before, on their way into the second-level cache while this one is walked.
template <class T>
__device__ __forceinline__ void prefetch_rows(const Rows<const T>& rows, int64_t token, int64_t channel) {
  if (!rows) return;
  const int t = static_cast<int>(threadIdx.x) % kChunk, half = static_cast<int>(threadIdx.x) / kChunk;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(rows[token + t] + channel + half * (kBlockChannels / 2)));
}

// Adds what the groups of states so far gave to a sum over states and keeps the new sum for the next; whether there is
// a next.
template <class T>
__device__ __forceinline__ bool add_group(const BackwardArgs<T>& args, float* total, float (&sum)[2], bool both) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (k == 1 && !both) break;
    if (!args.first_group) sum[k] += total[k];
    if (!args.last_group) total[k] = sum[k];
  }
  return !args.last_group;
}

// The same numbers, but the compiler does not know them any more. `through` is this lane's alone.
__device__ __forceinline__ void keep(float (&v)[4], float* through) {
  store_floats(through, v);
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(through));
  asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(at)
               : "memory");
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps, 2) scan_backward_kernel(const __grid_constant__ BackwardArgs<T> args) {
  using Shared = SharedBackward<T>;
  constexpr bool kExact = std::is_same_v<T, float>;
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4, row = lane / 4;
  typename Shared::Warp& warp = shared.warps[threadIdx.x / 32];
  const int64_t e = args.e;
  const int64_t block_channel = static_cast<int64_t>(blockIdx.x) * kBlockChannels;
  const int64_t warp_channel = block_channel + threadIdx.x / 32 * kWarpChannels;
  const int64_t in_channel = warp_channel + 4 * quarter;  // first of the four whose inputs this lane prepares
  const int64_t channel = warp_channel + 2 * row;         // first of the two that this lane walks
  const bool both = channel + 2 <= e;                     // else one, or none

  float rate[2][4], dA[2][4] = {}, bias[4], D[2], dD[2] = {}, dbias[2] = {};
  const auto exists = [&](int k, int j) { return channel + k < e && 4 * quarter + j < args.group_states; };
  const auto state_at = [&](auto* states, int64_t slot, int k, int j) -> auto& {
    return states[(slot * args.n + args.group + 4 * quarter + j) * e + channel + k];
  };
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      rate[k][j] =
          exists(k, j) ? -expf(args.A_log[(channel + k) * args.n + args.group + 4 * quarter + j]) * kLog2E : 0.0f;
    D[k] = args.D && channel + k < e ? args.D[channel + k] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) bias[i] = args.dt_bias && in_channel + i < e ? args.dt_bias[in_channel + i] : 0.0f;

  // States 4q and 4q + 2 of lane q go to rows 2q and 2q + 1 of an accumulator, the states after them 8 rows below. The
  // zeros and ones come through memory so that the compiler keeps them in their four neighbouring registers: what it
  // can make anew it makes anew before each product, 124 instructions a tile.
  const float even = row == 2 * quarter ? 1.0f : 0.0f, odd = row == 2 * quarter + 1 ? 1.0f : 0.0f;
  float upper[4] = {even, 0, odd, 0}, lower[4] = {0, even, 0, odd};
  keep(upper, warp.starts[0][0][lane]);
  keep(lower, warp.starts[0][1][lane]);

  for (int i = args.workers[blockIdx.y]; i < args.workers[blockIdx.y + 1]; ++i) {
    const Piece piece = args.pieces[i];
    float carried[2][4];
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        carried[k][j] = 0;
        if (exists(k, j) && args.carried)
          carried[k][j] = state_at(args.carried, i, k, j);
        else if (exists(k, j) && args.dh)
          carried[k][j] = state_at(args.dh, piece.slot, k, j);
      }

    for (int chunk = (piece.tokens - 1) / kChunk; chunk >= 0; --chunk) {
      const int64_t token = piece.token + static_cast<int64_t>(chunk) * kChunk;
      const int tokens = min(kChunk, piece.tokens - chunk * kChunk);
      const int tiles = (tokens + kTile - 1) / kTile;

      float h[2][4];
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j) h[k][j] = exists(k, j) ? state_at(args.starts, piece.chunk + chunk, k, j) : 0.0f;
      TilePart<T> B_part, C_part;
      B_part.load(args, args.B, token, tokens);
      C_part.load(args, args.C, token, tokens);
      if (args.aligned && tokens == kChunk && block_channel + kBlockChannels <= e)
        prepare<true>(args, token, tokens, in_channel, bias, lane, warp);
      else
        prepare<false>(args, token, tokens, in_channel, bias, lane, warp);
      B_part.store(&shared.B[0][0]);
      C_part.store(&shared.C[0][0]);
      if (chunk > 0 && block_channel + kBlockChannels <= e) {
        prefetch_rows(args.x, token - kChunk, block_channel);
        prefetch_rows(args.dt, token - kChunk, block_channel);
        prefetch_rows(args.dout, token - kChunk, block_channel);
        prefetch_rows(args.z, token - kChunk, block_channel);
      }
      // B and C are there; and nobody reads the last chunk's sums of dB and dC any more, which lie where the states
      // of this one go.
      __syncthreads();

      // The states before the tiles, (10).
      for (int tile = 0;; ++tile) {
#pragma unroll
        for (int k = 0; k < 2; ++k) store_floats(warp.starts[tile][k][lane], h[k]);
        if (tile == tiles - 1) break;
#pragma unroll
        for (int s = 0; s < kTile; ++s) {
          const int t = tile * kTile + s;
          float B[4], delta[4];
          load_floats(&shared.B[t][4 * quarter], B);
          load_floats(warp.delta[t][row], delta);
#pragma unroll
          for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j)
              h[k][j] = exp2_fast(delta[2 * k] * rate[k][j]) * h[k][j] + delta[2 * k + 1] * B[j];
        }
      }

      for (int tile = tiles - 1; tile >= 0; --tile) {
        // This tile's states and decays.
        float start[2][4], states[kTile][2][4], decays[kTile][2][4];
#pragma unroll
        for (int k = 0; k < 2; ++k) load_floats(warp.starts[tile][k][lane], start[k]);
#pragma unroll
        for (int s = 0; s < kTile; ++s) {
          const int t = tile * kTile + s;
          float B[4], delta[4];
          load_floats(&shared.B[t][4 * quarter], B);
          load_floats(warp.delta[t][row], delta);
#pragma unroll
          for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float before = s == 0 ? start[k][j] : states[s == 0 ? 0 : s - 1][k][j];
              decays[s][k][j] = exp2_fast(delta[2 * k] * rate[k][j]);
              states[s][k][j] = decays[s][k][j] * before + delta[2 * k + 1] * B[j];
            }
        }

        // Backwards over the tile. Sums over states: rows of the accumulators are channels, columns are tokens. Sums
        // over channels, first half and second half of the tile: rows are states, columns 2 (t % 4) and the next are
        // the token; the even channels' sum is in the upper half, the odd ones' in the lower.
        float y[4] = {}, dinput[4] = {}, ddelta[4] = {}, dC[2][4] = {}, dB[2][4] = {};
        float ys[2][2], dinputs[2][2], ddeltas[2][2];  // of a pair of tokens
#pragma unroll
        for (int s = kTile - 1; s >= 0; --s) {
          const int t = tile * kTile + s;
          float B[4], C[4], delta[4], dy[2], from_B[4], from_C[4];
          load_floats(&shared.B[t][4 * quarter], B);
          load_floats(&shared.C[t][4 * quarter], C);
          load_floats(warp.delta[t][row], delta);
          load_floats(warp.dy[t][row], dy);
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            float &sum_y = ys[s % 2][k], &sum_input = dinputs[s % 2][k], &sum_delta = ddeltas[s % 2][k];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float now = states[s][k][j], before = s == 0 ? start[k][j] : states[s == 0 ? 0 : s - 1][k][j];
              const float g = dy[k] * C[j] + carried[k][j];  // (13)
              carried[k][j] = g * decays[s][k][j];
              const float decayed = carried[k][j] * before;
              from_C[j] = k == 0 ? dy[k] * now : from_C[j] + dy[k] * now;                    // (14)
              from_B[j] = k == 0 ? g * delta[2 * k + 1] : from_B[j] + g * delta[2 * k + 1];  // (15)
              sum_y = j == 0 ? C[j] * now : sum_y + C[j] * now;                              // (11)
              sum_input = j == 0 ? g * B[j] : sum_input + g * B[j];                          // (16)
              sum_delta = j == 0 ? decayed * rate[k][j] : sum_delta + decayed * rate[k][j];  // (17)
              dA[k][j] += decayed * delta[2 * k];                                            // (18)
            }
          }
          if (s % 2 == 0) {
            const float pair[2] = {row == s ? 1.0f : 0.0f, row == s + 1 ? 1.0f : 0.0f};
            add_rows<kExact>(y, {ys[0][0], ys[0][1], ys[1][0], ys[1][1]}, pair);
            add_rows<kExact>(dinput, {dinputs[0][0], dinputs[0][1], dinputs[1][0], dinputs[1][1]}, pair);
            add_rows<kExact>(ddelta, {ddeltas[0][0], ddeltas[0][1], ddeltas[1][0], ddeltas[1][1]}, pair);
          }
          const float column[2] = {row == s % 4 * 2 ? 1.0f : 0.0f, row == s % 4 * 2 + 1 ? 1.0f : 0.0f};
          float moved[4] = {}, moved_too[4] = {};  // rows are states, columns are channels
          add_columns<kExact>(moved, upper, from_C[0], from_C[2]);
          add_columns<kExact>(moved, lower, from_C[1], from_C[3]);
          add_columns<kExact>(moved_too, upper, from_B[0], from_B[2]);
          add_columns<kExact>(moved_too, lower, from_B[1], from_B[3]);
          add_rows<kExact>(dC[s / 4], moved, column);
          add_rows<kExact>(dB[s / 4], moved_too, column);
        }

        __syncwarp();  // every lane has read its start, which the sums now replace
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* sums = &warp.starts[tile][0][0][0] + (4 * half + quarter) * 2 * kStates + 2 * row;
          store_floats(sums, {dB[half][0] + dB[half][2], dB[half][1] + dB[half][3]});
          store_floats(sums + kStates, {dC[half][0] + dC[half][2], dC[half][1] + dC[half][3]});
        }

        // Gradients of the elements: tokens 2q and 2q + 1 of the tile, this lane's channels.
        const int first = tile * kTile + 2 * quarter;
        T* dx_at = args.dx[token + first] + channel;
        T* ddt_at = args.ddt[token + first] + channel;
        T* dz_at = args.dz[token + first] + channel;
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int t = first + u;
          if (t >= tokens || channel >= e) break;
          float y_here[2] = {y[u], y[2 + u]}, input_here[2] = {dinput[u], dinput[2 + u]},
                delta_here[2] = {ddelta[u], ddelta[2 + u]};
          if (args.y) {
            const int64_t at = (token + t) * e + channel;
            const bool more = add_group(args, args.y + at, y_here, both) &
                              add_group(args, args.dinput + at, input_here, both) &
                              add_group(args, args.ddelta + at, delta_here, both);
            if (more) continue;
          }
          float delta[4], dy[2], dz[2], dx[2], ddt[2];
          const Raw<T, 2> x = warp.x[t][row];
          load_floats(warp.delta[t][row], delta);
          load_floats(warp.dy[t][row], dy);
          load_floats(warp.dz[t][row], dz);
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            dz[k] *= y_here[k] + D[k] * x[k];                                                       // (19)
            dx[k] = input_here[k] * delta[2 * k] + dy[k] * D[k];                                    // (16)
            ddt[k] = (delta_here[k] * kLn2 + input_here[k] * x[k]) * softplus_slope(delta[2 * k]);  // (17)
            dD[k] += dy[k] * x[k];
            dbias[k] += ddt[k];
          }
          if (args.dz) store_pair(dz_at + u * args.dz.stride, dz, both, args.aligned);
          if (args.dx) store_pair(dx_at + u * args.dx.stride, dx, both, args.aligned);
          if (args.ddt) store_pair(ddt_at + u * args.ddt.stride, ddt, both, args.aligned);
        }
      }

      __syncthreads();  // all warps' sums of dB and dC are there
      if (args.dBC) {
        float* to = args.dBC + (blockIdx.x * args.tokens + token) * 2 * kStates;
        for (int at = static_cast<int>(threadIdx.x) * 4; at < tokens * 2 * kStates; at += 32 * kWarps * 4) {
          float total[4] = {};
#pragma unroll
          for (int w = 0; w < kWarps; ++w) {
            float share[4];
            load_floats(&shared.warps[w].starts[0][0][0][0] + at, share);
#pragma unroll
            for (int j = 0; j < 4; ++j) total[j] += share[j];
          }
          store_floats(to + at, total);
        }
      }
    }
    if (args.dh && piece.first)
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (exists(k, j)) state_at(args.dh, piece.slot, k, j) = carried[k][j];
  }

#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (exists(k, j))
        args.dA[(static_cast<int64_t>(blockIdx.y) * kStates + 4 * quarter + j) * e + channel + k] = dA[k][j];
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      dD[k] += __shfl_xor_sync(~0u, dD[k], step);
      dbias[k] += __shfl_xor_sync(~0u, dbias[k], step);
    }
    if (quarter == 0 && channel + k < e) {
      args.dD[blockIdx.y * e + channel + k] = dD[k];
      args.dbias[blockIdx.y * e + channel + k] = dbias[k];
    }
  }
}

// The gradient that leaves a piece to its left when nothing enters from its right, and the sum of delta: what
// carry_kernel needs to know of a piece.
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    scan_backward_piece_kernel(const __grid_constant__ BackwardArgs<T> args) {
  __shared__ __align__(16) float C_tile[kChunk][kStates];
  __shared__ __align__(16) float shared[kWarps][kTile * 2][8][4];  // delta and dy of each set's channel
  const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4, row = lane / 4;
  float(&warp)[kTile * 2][8][4] = shared[threadIdx.x / 32];
  const int64_t e = args.e;
  const int64_t warp_channel = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kWarpChannels;
  const int64_t in_channel = warp_channel + 4 * quarter, channel = warp_channel + 2 * row;
  const int i = static_cast<int>(blockIdx.y);
  const Piece piece = args.pieces[i];
  if (piece.first) return;  // nothing is to its left
  float rate[2][4], carried[2][4] = {}, bias[4], total[2] = {};
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = 4 * quarter + j;
      rate[k][j] = channel + k < e && n < args.group_states
                       ? -expf(args.A_log[(channel + k) * args.n + args.group + n]) * kLog2E
                       : 0.0f;
    }
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) bias[c] = args.dt_bias && in_channel + c < e ? args.dt_bias[in_channel + c] : 0.0f;

  for (int chunk = (piece.tokens - 1) / kChunk; chunk >= 0; --chunk) {
    const int64_t token = piece.token + static_cast<int64_t>(chunk) * kChunk;
    const int tokens = min(kChunk, piece.tokens - chunk * kChunk);
    __syncthreads();  // nobody reads the last chunk's C any more
    TilePart<T> C_part;
    C_part.load(args, args.C, token, tokens);
    C_part.store(&C_tile[0][0]);
    __syncthreads();
    for (int begin = kChunk - 2 * kTile; begin >= 0; begin -= 2 * kTile) {
      if (begin >= tokens) continue;
      __syncwarp();
      Raw<T, 4> dt[2], z[2], dout[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = begin + half * kTile + row;
        const int64_t at = token + t, count = t < tokens ? e - in_channel : 0;
        const bool at_once = args.aligned && count >= 4;
        dt[half] = read<4>(args.dt[at] + in_channel, count, at_once);
        dout[half] = read<4>(args.dout[at] + in_channel, count, at_once);
        if (args.z) z[half] = read<4>(args.z[at] + in_channel, count, at_once);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float inside = begin + half * kTile + row < tokens ? 1.0f : 0.0f;
        float dy[4], delta[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          delta[c] = inside * softplus(dt[half][c] + bias[c]);
          dy[c] = dout[half][c];
        }
        if (args.z) {
#pragma unroll
          for (int c = 0; c < 4; ++c) dy[c] *= z[half][c] * sigmoid(z[half][c]);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j)
          store_floats(&warp[half * kTile + row][2 * quarter + j][0],
                       {delta[2 * j], dy[2 * j], delta[2 * j + 1], dy[2 * j + 1]});
      }
      __syncwarp();
#pragma unroll
      for (int s = 2 * kTile - 1; s >= 0; --s) {
        float C[4], inputs[4];
        load_floats(&C_tile[begin + s][4 * quarter], C);
        load_floats(warp[s][row], inputs);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          total[k] += inputs[2 * k];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            carried[k][j] = (carried[k][j] + inputs[2 * k + 1] * C[j]) * exp2_fast(inputs[2 * k] * rate[k][j]);
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (channel + k >= e) continue;
    if (quarter == 0) args.delta_sums[i * e + channel + k] = total[k];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * quarter + j < args.group_states)
        args.carried[(static_cast<int64_t>(i) * args.n + args.group + 4 * quarter + j) * e + channel + k] =
            carried[k][j];
  }
}

// From what leaves each piece on its own to what enters each: last piece first, along each sequence. One thread a
// channel and state.
template <class T>
__global__ void scan_backward_carry_kernel(const __grid_constant__ BackwardArgs<T> args, int pieces) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int n = args.group + static_cast<int>(blockIdx.y);
  if (c >= args.e) return;
  const float rate = -expf(args.A_log[c * args.n + n]) * kLog2E;
  float carried = 0;
  for (int i = pieces - 1; i >= 0; --i) {
    const Piece piece = args.pieces[i];
    if (piece.last) carried = args.dh ? args.dh[(static_cast<int64_t>(piece.slot) * args.n + n) * args.e + c] : 0.0f;
    float& share = args.carried[(static_cast<int64_t>(i) * args.n + n) * args.e + c];
    const float own = piece.first ? 0.0f : share;
    share = carried;
    if (!piece.first) carried = own + exp2_fast(args.delta_sums[i * args.e + c] * rate) * carried;
  }
}

// dB and dC from the shares of the blocks of channels. One thread four states of a token.
template <class T>
__global__ void scan_backward_sum_tokens_kernel(const float* shares, int blocks, int64_t tokens, int states, Rows<T> dB,
                                                Rows<T> dC) {
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
