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

// A lane holds kSets channels and 4 states of each: lane % 4 says which states, lane / 4 and the set which channel.
template <int kSets>
struct Layout {
  static constexpr int kWarpChannels = 8 * kSets;
  static constexpr int kBlockChannels = kWarps * kWarpChannels;
  // Channel of row (lane / 4) and set, inside the warp. The sums over states come out of the tensor cores with rows 2q
  // and 2q + 1 of every set in lane q of four; this order makes them neighbours.
  __device__ static int channel(int row, int set) { return 2 * kSets * (row >> 1) + 2 * set + (row & 1); }
};

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
__device__ __forceinline__ float softplus(float v) {
  // log1p by its argument: near 1 the logarithm of 1 + e^v loses what e^v had, so small e^v go through the series.
  const float power = exp2_fast(v * kLog2E);
  const float series = power * (1 - power * (0.5f - power * (1.0f / 3 - power * 0.25f)));
  const float result = power < 0.03f ? series : __logf(1 + power);
  return v > 20 ? v : result;
}
// The derivative of softplus where it has the value delta.
__device__ __forceinline__ float softplus_slope(float delta) {
  const float series = delta * (1 - delta * (0.5f - delta * (1.0f / 6 - delta * (1.0f / 24))));
  return delta < 0.06f ? series : 1 - exp2_fast(-delta * kLog2E);
}
__device__ __forceinline__ float sigmoid(float v) { return __fdividef(1.0f, 1.0f + exp2_fast(-v * kLog2E)); }

// d += a b on 16 x 8 tf32 numbers: row lane / 4 (and + 8) of a and d, column lane / 4 of b.
__device__ __forceinline__ void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
// The same where b needs more than tf32's 11 bits: in two parts, of 11 bits each.
template <bool kExact>
__device__ __forceinline__ void multiply_add_as(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                                float b0, float b1) {
  multiply_add(d, a0, a1, a2, a3, b0, b1);
  if constexpr (kExact) {
    const auto rest = [](float v) { return v - __uint_as_float(__float_as_uint(v) & 0xffffe000u); };
    multiply_add(d, a0, a1, a2, a3, rest(b0), rest(b1));
  }
}

// Neighbouring channels of a row, 0 beyond e.
template <int kCount, class T>
__device__ __forceinline__ void load_channels(const Rows<const T>& rows, int64_t token, int64_t c, int64_t e,
                                              bool aligned, float (&to)[kCount]) {
  if (aligned && c + kCount <= e) {
    load_floats(rows[token] + c, to);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = c + i < e ? to_float(rows[token][c + i]) : 0.0f;
  }
}
template <int kCount, class T>
__device__ __forceinline__ void store_channels(const Rows<T>& rows, int64_t token, int64_t c, int64_t e, bool aligned,
                                               const float (&from)[kCount]) {
  if (aligned && c + kCount <= e) {
    store_floats(rows[token] + c, from);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (c + i < e) rows[token][c + i] = from_float<T>(from[i]);
  }
}

// B and C of a chunk, 0 beyond its tokens and states. (64, 16) each
template <class T>
__device__ __forceinline__ void load_tile(const BackwardArgs<T>& args, const Rows<const T>& rows, int64_t token,
                                          int tokens, float* to) {
  constexpr int kPack = 16 / sizeof(T), kPacks = kStates / kPack;
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * kPacks; i += 32 * kWarps) {
    const int t = i / kPacks, n = i % kPacks * kPack;
    float values[kPack] = {};
    if (t < tokens) {
      if (args.aligned_BC && n + kPack <= args.group_states) {
        load_floats(rows[token + t] + n, values);
      } else {
#pragma unroll
        for (int j = 0; j < kPack; ++j)
          if (n + j < args.group_states) values[j] = to_float(rows[token + t][n + j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) to[t * kStates + n + j] = values[j];
  }
}

template <int kSets>
struct alignas(16) SharedBackward {
  float B[kChunk][kStates], C[kChunk][kStates];
  struct Warp {
    float delta[kChunk][8][2 * kSets];  // delta and delta x of each set's channel, by row
    float dy[kChunk][8][kSets];
    // The state before each tile; once a tile is walked, its sums of dB and dC: (8, 32), 256 numbers.
    float starts[kTiles][2][32][4];
  } warps[kWarps];
};

// The chunk's delta, delta x and dy for this warp's channels. Tokens beyond the chunk keep the state: delta, x and dy
// are 0 there.
template <class T, int kSets>
__device__ __forceinline__ void prepare(const BackwardArgs<T>& args, int64_t token, int tokens, int64_t channel,
                                        const float (&bias)[2 * kSets], int lane,
                                        typename SharedBackward<kSets>::Warp& warp) {
  constexpr int kMine = 2 * kSets;
  const int row = lane / 4, quarter = lane % 4;
#pragma unroll 2
  for (int t = row; t < kChunk; t += kTile) {
    float x[kMine] = {}, dt[kMine] = {}, z[kMine] = {}, dy[kMine] = {}, delta[kMine];
    const bool inside = t < tokens;
    if (inside) {
      load_channels(args.x, token + t, channel, args.e, args.aligned, x);
      load_channels(args.dt, token + t, channel, args.e, args.aligned, dt);
      load_channels(args.dout, token + t, channel, args.e, args.aligned, dy);
      if (args.z) load_channels(args.z, token + t, channel, args.e, args.aligned, z);
    }
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      delta[i] = inside ? softplus(dt[i] + bias[i]) : 0.0f;
      if (args.z) dy[i] *= z[i] * sigmoid(z[i]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float pair[kMine], gradients[kSets];
#pragma unroll
      for (int k = 0; k < kSets; ++k) {
        pair[2 * k] = delta[2 * k + j];
        pair[2 * k + 1] = delta[2 * k + j] * x[2 * k + j];
        gradients[k] = dy[2 * k + j];
      }
      store_floats(&warp.delta[t][2 * quarter + j][0], pair);
      store_floats(&warp.dy[t][2 * quarter + j][0], gradients);
    }
  }
}

template <class T, int kSets>
__global__ void __launch_bounds__(32 * kWarps, kSets == 2 ? 2 : 3)
    scan_backward_kernel(const __grid_constant__ BackwardArgs<T> args) {
  using Shared = SharedBackward<kSets>;
  constexpr bool kExact = std::is_same_v<T, float>;
  constexpr int kMine = 2 * kSets;
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4, row = lane / 4;
  typename Shared::Warp& warp = shared.warps[threadIdx.x / 32];
  const int64_t e = args.e;
  const int64_t warp_channel =
      (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * Layout<kSets>::kWarpChannels;
  const int64_t out_channel = warp_channel + kMine * quarter;  // of this lane's share of inputs and outputs
  const bool has_z = static_cast<bool>(args.z);

  int64_t channel[kSets];
  float rate[kSets][4], dA[kSets][4] = {};
  bool exists[kSets][4];
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
    channel[k] = warp_channel + Layout<kSets>::channel(row, k);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = 4 * quarter + j;
      exists[k][j] = channel[k] < e && n < args.group_states;
      rate[k][j] = exists[k][j] ? -expf(args.A_log[channel[k] * args.n + args.group + n]) * kLog2E : 0.0f;
    }
  }
  float bias[kMine], D[kMine], dD[kMine] = {}, dbias[kMine] = {};
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    bias[i] = args.dt_bias && out_channel + i < e ? args.dt_bias[out_channel + i] : 0.0f;
    D[i] = args.D && out_channel + i < e ? args.D[out_channel + i] : 0.0f;
  }
  // What moves state 4q + j of lane q to row 2q + j of an accumulator (rows 2q + j - 2 + 8 for j of 2 and 3).
  const uint32_t kOne = __float_as_uint(1.0f);
  const uint32_t even = row == 2 * quarter ? kOne : 0u, odd = row == 2 * quarter + 1 ? kOne : 0u;
  const auto state_at = [&](float* states, int64_t slot, int k, int j) -> float& {
    return states[(slot * args.n + args.group + 4 * quarter + j) * e + channel[k]];
  };

  for (int i = args.workers[blockIdx.y]; i < args.workers[blockIdx.y + 1]; ++i) {
    const Piece piece = args.pieces[i];
    float carried[kSets][4];
#pragma unroll
    for (int k = 0; k < kSets; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        carried[k][j] = 0;
        if (exists[k][j] && args.carried)
          carried[k][j] = state_at(args.carried, i, k, j);
        else if (exists[k][j] && args.dh)
          carried[k][j] = state_at(args.dh, piece.slot, k, j);
      }

    for (int chunk = (piece.tokens - 1) / kChunk; chunk >= 0; --chunk) {
      const int64_t token = piece.token + static_cast<int64_t>(chunk) * kChunk;
      const int tokens = min(kChunk, piece.tokens - chunk * kChunk);
      const int tiles = (tokens + kTile - 1) / kTile;

      float h[kSets][4];
#pragma unroll
      for (int k = 0; k < kSets; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          h[k][j] = exists[k][j] ? state_at(const_cast<float*>(args.starts), piece.chunk + chunk, k, j) : 0.0f;
      load_tile(args, args.B, token, tokens, &shared.B[0][0]);
      load_tile(args, args.C, token, tokens, &shared.C[0][0]);
      prepare<T, kSets>(args, token, tokens, out_channel, bias, lane, warp);
      // B and C are there; and nobody reads the last chunk's sums of dB and dC any more, which lie where the states
      // of this one go.
      __syncthreads();

      // The states before the tiles, (10).
      for (int tile = 0;; ++tile) {
#pragma unroll
        for (int k = 0; k < kSets; ++k) store_floats(warp.starts[tile][k][lane], h[k]);
        if (tile == tiles - 1) break;
#pragma unroll
        for (int s = 0; s < kTile; ++s) {
          const int t = tile * kTile + s;
          float B[4], delta[kMine];
          load_floats(&shared.B[t][4 * quarter], B);
          load_floats(warp.delta[t][row], delta);
#pragma unroll
          for (int k = 0; k < kSets; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j)
              h[k][j] = exp2_fast(delta[2 * k] * rate[k][j]) * h[k][j] + delta[2 * k + 1] * B[j];
        }
      }

      for (int tile = tiles - 1; tile >= 0; --tile) {
        // This tile's states and decays.
        float start[kSets][4], states[kTile][kSets][4], decays[kTile][kSets][4];
#pragma unroll
        for (int k = 0; k < kSets; ++k) load_floats(warp.starts[tile][k][lane], start[k]);
#pragma unroll
        for (int s = 0; s < kTile; ++s) {
          const int t = tile * kTile + s;
          float B[4], delta[kMine];
          load_floats(&shared.B[t][4 * quarter], B);
          load_floats(warp.delta[t][row], delta);
#pragma unroll
          for (int k = 0; k < kSets; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float before = s == 0 ? start[k][j] : states[s == 0 ? 0 : s - 1][k][j];
              decays[s][k][j] = exp2_fast(delta[2 * k] * rate[k][j]);
              states[s][k][j] = decays[s][k][j] * before + delta[2 * k + 1] * B[j];
            }
        }

        // Backwards over the tile. Sums over states: row s of the accumulators is token s, columns are channels. Sums
        // over channels: rows are tokens, dC's first, dB's from 8 on; columns are states.
        float y[4] = {}, dinput[4] = {}, ddelta[4] = {}, low[4] = {}, high[4] = {};
#pragma unroll
        for (int s = kTile - 1; s >= 0; --s) {
          const int t = tile * kTile + s;
          float B[4], C[4], delta[kMine], dy[kSets], dB[4], dC[4];
          float ys[kSets] = {}, dinputs[kSets] = {}, ddeltas[kSets] = {};
          load_floats(&shared.B[t][4 * quarter], B);
          load_floats(&shared.C[t][4 * quarter], C);
          load_floats(warp.delta[t][row], delta);
          load_floats(warp.dy[t][row], dy);
#pragma unroll
          for (int k = 0; k < kSets; ++k)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const float now = states[s][k][j], before = s == 0 ? start[k][j] : states[s == 0 ? 0 : s - 1][k][j];
              const float g = dy[k] * C[j] + carried[k][j];  // (13)
              carried[k][j] = g * decays[s][k][j];
              const float decayed = carried[k][j] * before;
              dC[j] = k == 0 ? dy[k] * now : dC[j] + dy[k] * now;                              // (14)
              dB[j] = k == 0 ? g * delta[2 * k + 1] : dB[j] + g * delta[2 * k + 1];            // (15)
              ys[k] = j == 0 ? C[j] * now : ys[k] + C[j] * now;                                // (11)
              dinputs[k] = j == 0 ? g * B[j] : dinputs[k] + g * B[j];                          // (16)
              ddeltas[k] = j == 0 ? decayed * rate[k][j] : ddeltas[k] + decayed * rate[k][j];  // (17)
              dA[k][j] += decayed * delta[2 * k];                                              // (18)
            }
          const uint32_t here = row == s ? kOne : 0u;
          if constexpr (kSets == 2) {
            multiply_add_as<kExact>(y, here, 0, 0, here, ys[0], ys[1]);
            multiply_add_as<kExact>(dinput, here, 0, 0, here, dinputs[0], dinputs[1]);
            multiply_add_as<kExact>(ddelta, here, 0, 0, here, ddeltas[0], ddeltas[1]);
          } else {
            multiply_add_as<kExact>(y, here, 0, 0, 0, ys[0], 0);
            multiply_add_as<kExact>(dinput, here, 0, 0, here, dinputs[0], ddeltas[0]);
          }
          float moved[4] = {};
          multiply_add_as<kExact>(moved, even, 0, odd, 0, dC[0], dC[1]);
          multiply_add_as<kExact>(moved, 0, even, 0, odd, dC[2], dC[3]);
          multiply_add_as<kExact>(low, here, 0, here, 0, moved[0], moved[1]);
          multiply_add_as<kExact>(high, here, 0, here, 0, moved[2], moved[3]);
          float moved_B[4] = {};
          multiply_add_as<kExact>(moved_B, even, 0, odd, 0, dB[0], dB[1]);
          multiply_add_as<kExact>(moved_B, 0, even, 0, odd, dB[2], dB[3]);
          multiply_add_as<kExact>(low, 0, here, 0, here, moved_B[0], moved_B[1]);
          multiply_add_as<kExact>(high, 0, here, 0, here, moved_B[2], moved_B[3]);
        }
        if constexpr (kSets == 1) ddelta[0] = dinput[2], ddelta[1] = dinput[3];

        __syncwarp();  // every lane has read its start, which the sums now replace
        float* sums = &warp.starts[tile][0][0][0] + row * 2 * kStates + 4 * quarter;
        store_floats(sums, {low[2], low[3], high[2], high[3]});
        store_floats(sums + kStates, {low[0], low[1], high[0], high[1]});

        // Gradients of the elements: lane (row, quarter) has token `row` of the tile.
        const int t = tile * kTile + row;
        if (t < tokens) {
          const int64_t at = token + t;
          float values[3][kMine];
#pragma unroll
          for (int c = 0; c < kMine; ++c)
            values[0][c] = y[c], values[1][c] = dinput[c], values[2][c] = ddelta[c] * kLn2;
          if (args.y) {
            float* totals[3] = {args.y, args.dinput, args.ddelta};
#pragma unroll
            for (int which = 0; which < 3; ++which)
#pragma unroll
              for (int c = 0; c < kMine; ++c)
                if (out_channel + c < e) {
                  float& total = totals[which][at * e + out_channel + c];
                  if (!args.first_group) values[which][c] += total;
                  if (!args.last_group) total = values[which][c];
                }
          }
          if (args.last_group) {
            float x[kMine], dout[kMine], z[kMine], delta[kMine], dy[kMine], result[kMine];
            load_channels(args.x, at, out_channel, e, args.aligned, x);
#pragma unroll
            for (int c = 0; c < kMine; ++c) {
              delta[c] = warp.delta[t][2 * quarter + c % 2][c / 2 * 2];
              dy[c] = warp.dy[t][2 * quarter + c % 2][c / 2];
            }
            if (has_z && args.dz) {
              load_channels(args.dout, at, out_channel, e, args.aligned, dout);
              load_channels(args.z, at, out_channel, e, args.aligned, z);
#pragma unroll
              for (int c = 0; c < kMine; ++c) {
                const float gate = sigmoid(z[c]);
                result[c] = dout[c] * (values[0][c] + D[c] * x[c]) * gate * (1 + z[c] * (1 - gate));  // (19)
              }
              store_channels(args.dz, at, out_channel, e, args.aligned, result);
            }
#pragma unroll
            for (int c = 0; c < kMine; ++c) {
              result[c] = values[1][c] * delta[c] + dy[c] * D[c];  // (16)
              dD[c] += dy[c] * x[c];
            }
            if (args.dx) store_channels(args.dx, at, out_channel, e, args.aligned, result);
#pragma unroll
            for (int c = 0; c < kMine; ++c) {
              result[c] = (values[2][c] + values[1][c] * x[c]) * softplus_slope(delta[c]);  // (17)
              dbias[c] += result[c];
            }
            if (args.ddt) store_channels(args.ddt, at, out_channel, e, args.aligned, result);
          }
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
      for (int k = 0; k < kSets; ++k)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (exists[k][j]) state_at(args.dh, piece.slot, k, j) = carried[k][j];
  }

#pragma unroll
  for (int k = 0; k < kSets; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (exists[k][j])
        args.dA[(static_cast<int64_t>(blockIdx.y) * kStates + 4 * quarter + j) * e + channel[k]] = dA[k][j];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      dD[i] += __shfl_xor_sync(~0u, dD[i], step);
      dbias[i] += __shfl_xor_sync(~0u, dbias[i], step);
    }
    if (row == 0 && out_channel + i < e) {
      args.dD[blockIdx.y * e + out_channel + i] = dD[i];
      args.dbias[blockIdx.y * e + out_channel + i] = dbias[i];
    }
  }
}

// The gradient that leaves a piece to its left when nothing enters from its right, and the sum of delta: what
// carry_kernel needs to know of a piece.
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    scan_backward_piece_kernel(const __grid_constant__ BackwardArgs<T> args) {
  constexpr int kSets = 2, kMine = 2 * kSets;
  __shared__ __align__(16) float C_tile[kChunk][kStates];
  __shared__ __align__(16) float shared[kWarps][kTile * 2][8][kMine];  // delta and dy of each set's channel
  const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4, row = lane / 4;
  float(&warp)[kTile * 2][8][kMine] = shared[threadIdx.x / 32];
  const int64_t e = args.e;
  const int64_t warp_channel =
      (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * Layout<kSets>::kWarpChannels;
  const int64_t out_channel = warp_channel + kMine * quarter;
  const int i = static_cast<int>(blockIdx.y);
  const Piece piece = args.pieces[i];
  if (piece.first) return;  // nothing is to its left
  int64_t channel[kSets];
  float rate[kSets][4], carried[kSets][4] = {}, bias[kMine], total[kSets] = {};
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
    channel[k] = warp_channel + Layout<kSets>::channel(row, k);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = 4 * quarter + j;
      rate[k][j] = channel[k] < e && n < args.group_states
                       ? -expf(args.A_log[channel[k] * args.n + args.group + n]) * kLog2E
                       : 0.0f;
    }
  }
#pragma unroll
  for (int c = 0; c < kMine; ++c) bias[c] = args.dt_bias && out_channel + c < e ? args.dt_bias[out_channel + c] : 0.0f;

  for (int chunk = (piece.tokens - 1) / kChunk; chunk >= 0; --chunk) {
    const int64_t token = piece.token + static_cast<int64_t>(chunk) * kChunk;
    const int tokens = min(kChunk, piece.tokens - chunk * kChunk);
    __syncthreads();  // nobody reads the last chunk's C any more
    load_tile(args, args.C, token, tokens, &C_tile[0][0]);
    __syncthreads();
    for (int begin = kChunk - 2 * kTile; begin >= 0; begin -= 2 * kTile) {
      if (begin >= tokens) continue;
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int t = begin + half * kTile + row;
        float dt[kMine] = {}, z[kMine] = {}, dy[kMine] = {}, delta[kMine];
        const bool inside = t < tokens;
        if (inside) {
          load_channels(args.dt, token + t, out_channel, e, args.aligned, dt);
          load_channels(args.dout, token + t, out_channel, e, args.aligned, dy);
          if (args.z) load_channels(args.z, token + t, out_channel, e, args.aligned, z);
        }
#pragma unroll
        for (int c = 0; c < kMine; ++c) {
          delta[c] = inside ? softplus(dt[c] + bias[c]) : 0.0f;
          if (args.z) dy[c] *= z[c] * sigmoid(z[c]);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j)
          store_floats(&warp[half * kTile + row][2 * quarter + j][0], {delta[j], dy[j], delta[2 + j], dy[2 + j]});
      }
      __syncwarp();
#pragma unroll
      for (int s = 2 * kTile - 1; s >= 0; --s) {
        float C[4], inputs[kMine];
        load_floats(&C_tile[begin + s][4 * quarter], C);
        load_floats(warp[s][row], inputs);
#pragma unroll
        for (int k = 0; k < kSets; ++k) {
          total[k] += inputs[2 * k];
#pragma unroll
          for (int j = 0; j < 4; ++j)
            carried[k][j] = (carried[k][j] + inputs[2 * k + 1] * C[j]) * exp2_fast(inputs[2 * k] * rate[k][j]);
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kSets; ++k) {
    if (channel[k] >= e) continue;
    if (quarter == 0) args.delta_sums[i * e + channel[k]] = total[k];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * quarter + j < args.group_states)
        args.carried[(static_cast<int64_t>(i) * args.n + args.group + 4 * quarter + j) * e + channel[k]] =
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
