// The main kernel of the selective scan's backward, (13) to (19) of README.md, whose section "On the GPU, backward"
// says how a block shares the work. One block walks pieces of sequences, last chunk first, for 32 channels; 16 states
// at a time. Included by selective_scan_backward_cuda.cu alone.
#pragma once

#include "ops/selective_scan/selective_scan_backward_inputs.cuh"

namespace ssm::cuda {
namespace {

// d += a b: bf16, (16, 8) += (16, 16) (16, 8). Lane l holds a at rows l / 4 (a0, a2) and l / 4 + 8 (a1, a3), columns
// 2 (l % 4) and the next, 8 further in a2 and a3; b at rows 2 (l % 4) and the next, 8 further in b1, column l / 4; d at
// rows l / 4 and l / 4 + 8 (d2, d3), columns 2 (l % 4) and the next.
__device__ __forceinline__ void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The same with (16, 8) (8, 8) of tf32: a and b have one number where they had two.
__device__ __forceinline__ void multiply_add_tf32(float (&d)[4], float a0, float a1, float a2, float a3, float b0,
                                                  float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
// Four states of one channel as two pairs of bf16, which is what the tensor cores take.
struct States16 {
  uint32_t low, high;
  __device__ __forceinline__ static States16 of(const float (&v)[4]) {
    return {pack16(v[0], v[1]), pack16(v[2], v[3])};
  }
  __device__ __forceinline__ float operator[](int j) const {
    const uint32_t pair = j < 2 ? low : high;
    return __uint_as_float(j % 2 ? pair & 0xffff0000u : pair << 16);
  }
};

// States of 8 channels, lane l with channel l / 4, by rows of states and columns 2 (l % 4) and the next of channels:
// what the tensor cores take to sum over channels.
__device__ __forceinline__ States16 transpose(const States16& states) {
  States16 to;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to.low) : "r"(states.low));
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to.high) : "r"(states.high));
  return to;
}

// One warp's walk over a tile: lane l has states state_of(l % 4, j) of channel l / 4 of the warp's 8.
template <class T>
struct Walker {
  using Shared = SharedBackward<T>;
  static constexpr bool kSixteen = Shared::kSixteen;
  static constexpr int kTile = Shared::kTile;

  Shared& shared;
  int warp, row, quarter;
  float rate[4], carried[4], dA[4] = {};

  // h walks over one token, (10).
  __device__ __forceinline__ void step(float (&h)[4], float (&decay)[4], int t) const {
    const float2 input = shared.delta_input[t][Shared::slot(warp * kWarpChannels + row)];
    float B[4];
    load_floats(&shared.B[t][4 * quarter], B);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      decay[j] = exp2_fast(input.x * rate[j]);
      h[j] = decay[j] * h[j] + input.y * B[j];
    }
  }
  __device__ __forceinline__ void load_start(float (&h)[4], int buffer, int tile) const {
    if (tile > 0) {
      load_floats(shared.second_start[threadIdx.x], h);
      return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      h[j] = to_float(shared.starts[buffer][state_of(quarter, j)][warp * kWarpChannels + row]);
  }

  // What leaves to the left, and the sum of delta, of tokens [0, tokens) and those that keep the state after them.
  __device__ __forceinline__ void carry(int tokens, float& total) {
    const int slot = Shared::slot(warp * kWarpChannels + row);
#pragma unroll 8
    for (int t = (tokens + 7) / 8 * 8 - 1; t >= 0; --t) {
      const float2 output = shared.delta_dy[t][slot];
      float C[4];
      load_floats(&shared.C[t][4 * quarter], C);
      total += output.x;
#pragma unroll
      for (int j = 0; j < 4; ++j) carried[j] = (carried[j] + output.y * C[j]) * exp2_fast(output.x * rate[j]);
    }
  }

  // (13), (17) and (18) of one token, of which `before` is the state before.
  __device__ __forceinline__ void step_back(float (&g)[4], float& ddelta, const float (&decay)[4],
                                            const float (&before)[4], float delta, float dy, const float (&C)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      g[j] = dy * C[j] + carried[j];
      carried[j] = g[j] * decay[j];
      const float decayed = carried[j] * before[j];
      ddelta = j == 0 ? decayed * rate[j] : ddelta + decayed * rate[j];
      dA[j] += decayed * delta;
    }
  }

  __device__ __forceinline__ void walk(const Chunk& chunk) {
    if constexpr (kSixteen) {
      walk_sixteen(chunk.buffer);
    } else {
      float h[4], decay[4];
      load_start(h, chunk.buffer, 0);
#pragma unroll
      for (int s = 0; s < kTile; ++s) step(h, decay, s);
      store_floats(shared.second_start[threadIdx.x], h);
#pragma unroll 1
      for (int tile = 1; tile >= 0; --tile) walk_exact(chunk.buffer, tile);
    }
  }

  // The sum over states of two tokens' values times those of the operand: rows of the sum are channels, of the even
  // token in the upper half, of the odd one in the lower; its columns are tokens, of which `here` are these two.
  __device__ __forceinline__ static void project(float (&sum)[4], const float (&even)[4], const float (&odd)[4],
                                                 const float (&operand)[4], bool here) {
#pragma unroll
    for (int j = 0; j < 4; j += 2)
      multiply_add_tf32(sum, even[j], odd[j], even[j + 1], odd[j + 1], here ? operand[j] : 0,
                        here ? operand[j + 1] : 0);
  }
  // bf16: sums by the tensor cores, over states from tf32, over channels from the states rounded to bf16. Eight tokens
  // share the accumulators, of which they are the columns.
  __device__ __forceinline__ void walk_sixteen(int buffer) {
    const int channel = warp * kWarpChannels + row;
    float h[4], decays[kTile][4];
    States16 states[kTile];
    load_start(h, buffer, 0);
#pragma unroll
    for (int first = 0; first < kTile; first += 8) {
      float C[4], y[4] = {};
      load_floats(&shared.C[first + row][4 * quarter], C);
#pragma unroll
      for (int s = first; s < first + 8; s += 2) {
        float even[4];
        step(h, decays[s], s);
#pragma unroll
        for (int j = 0; j < 4; ++j) even[j] = h[j];
        step(h, decays[s + 1], s + 1);
        states[s] = States16::of(even), states[s + 1] = States16::of(h);
        project(y, even, h, C, row / 2 == (s - first) / 2);  // (11)
      }
      const int t = first + 2 * quarter;
      shared.y[t][channel] = y[0], shared.y[t + 1][channel] = y[3];
    }
#pragma unroll
    for (int first = kTile - 8; first >= 0; first -= 8) {
      const int mine = first + row;
      float B[4], dinput[4] = {}, ddelta[4] = {}, dC[4] = {}, dB[4] = {}, ddeltas[2][2];
      load_floats(&shared.B[mine][4 * quarter], B);
      const uint32_t dy16 = shared.dy16[mine][4 * warp + quarter], input16 = shared.input16[mine][4 * warp + quarter];
#pragma unroll
      for (int pair = 3; pair >= 0; --pair) {
        float gs[2][4];
#pragma unroll
        for (int u = 1; u >= 0; --u) {
          const int s = first + 2 * pair + u;
          float before[4], C[4];
          if (s == 0) {
            load_start(before, buffer, 0);
          } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) before[j] = states[s == 0 ? 0 : s - 1][j];
          }
          const float2 output = shared.delta_dy[s][Shared::slot(channel)];
          load_floats(&shared.C[s][4 * quarter], C);
          step_back(gs[u], ddeltas[pair % 2][u], decays[s], before, output.x, output.y, C);
        }
        project(dinput, gs[0], gs[1], B, row / 2 == pair);  // (16)
        const bool is_even = row == 2 * pair, is_odd = row == 2 * pair + 1;
        const States16 h0 = transpose(states[first + 2 * pair]), h1 = transpose(states[first + 2 * pair + 1]),
                       g0 = transpose(States16::of(gs[0])), g1 = transpose(States16::of(gs[1]));
        multiply_add(dC, h0.low, h0.high, h1.low, h1.high, is_even ? dy16 : 0, is_odd ? dy16 : 0);        // (14)
        multiply_add(dB, g0.low, g0.high, g1.low, g1.high, is_even ? input16 : 0, is_odd ? input16 : 0);  // (15)
        if (pair % 2 == 0)
          multiply_add_tf32(ddelta, ddeltas[0][0], ddeltas[0][1], ddeltas[1][0], ddeltas[1][1],
                            row == 2 * pair ? 1.0f : 0.0f, row == 2 * pair + 2 ? 1.0f : 0.0f);
      }
      const int t = first + 2 * quarter;
      shared.dinput[t][channel] = dinput[0], shared.dinput[t + 1][channel] = dinput[3];
      shared.ddelta[t][channel] = ddelta[0], shared.ddelta[t + 1][channel] = ddelta[2];
      auto& shares = shared.dBC[warp];
      shares[t][row] = dB[0], shares[t + 1][row] = dB[1];
      shares[t][row + 8] = dB[2], shares[t + 1][row + 8] = dB[3];
      shares[t][row + 16] = dC[0], shares[t + 1][row + 16] = dC[1];
      shares[t][row + 24] = dC[2], shares[t + 1][row + 24] = dC[3];
    }
  }

  // f32 and f16: everything in f32, sums over lanes by exchange.
  __device__ __forceinline__ void walk_exact(int buffer, int tile) {
    float states[kTile][4], decays[kTile][4], h[4];
    load_start(h, buffer, tile);
#pragma unroll
    for (int s = 0; s < kTile; ++s) {
      step(h, decays[s], tile * kTile + s);
#pragma unroll
      for (int j = 0; j < 4; ++j) states[s][j] = h[j];
    }
#pragma unroll
    for (int s = kTile - 1; s >= 0; --s) {
      const int t = tile * kTile + s, slot = Shared::slot(warp * kWarpChannels + row);
      const float2 input = shared.delta_input[t][slot], output = shared.delta_dy[t][slot];
      float B[4], C[4], g[4], before[4], sums[3] = {}, parts[8];
      load_floats(&shared.B[t][4 * quarter], B);
      load_floats(&shared.C[t][4 * quarter], C);
      if (s == 0) load_start(before, buffer, tile);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (s > 0) before[j] = states[s == 0 ? 0 : s - 1][j];
      step_back(g, sums[2], decays[s], before, output.x, output.y, C);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[0] += C[j] * states[s][j];
        sums[1] += B[j] * g[j];
        parts[j] = g[j] * input.y;
        parts[4 + j] = output.y * states[s][j];
      }
#pragma unroll
      for (float& sum : sums) {
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
      }
      const int channel = warp * kWarpChannels + row;
      if (quarter == 0)
        shared.y[t][channel] = sums[0], shared.dinput[t][channel] = sums[1], shared.ddelta[t][channel] = sums[2];
        // Of the eight parts each of the eight lanes with the same states ends with the sum of one.
#pragma unroll
      for (int half = 4; half; half /= 2) {
        const bool upper = row & half;
#pragma unroll
        for (int i = 0; i < half; ++i) {
          const float sent = upper ? parts[i] : parts[half + i], kept = upper ? parts[half + i] : parts[i];
          parts[i] = kept + __shfl_xor_sync(~0u, sent, 4 * half);
        }
      }
      shared.dBC[warp][t][(row & 4) * 4 + state_of(quarter, row & 3)] = parts[0];
    }
  }
};

template <class T, BackwardOutput kOutput>
__global__ void __launch_bounds__(kThreads, kOutput == BackwardOutput::all ? SharedBackward<T>::kBlocks : 4)
    scan_backward_kernel(const __grid_constant__ BackwardArgs<T> args) {
  using Shared = SharedBackward<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Walker<T> walker{shared, warp, lane / 4, lane % 4};
  const int e = args.e, channel = static_cast<int>(blockIdx.x) * kBlockChannels + warp * kWarpChannels + walker.row;
  const BlockInputs<T, kOutput> inputs(args, shared);

  const auto exists = [&](int j) { return channel < e && state_of(walker.quarter, j) < args.group_states; };
  const auto state_at = [&](auto* states, int64_t slot, int j) -> auto& {
    return states[(slot * args.n + args.group + state_of(walker.quarter, j)) * e + channel];
  };
#pragma unroll
  for (int j = 0; j < 4; ++j)
    walker.rate[j] =
        exists(j)
            ? -expf(args.A_log[static_cast<int64_t>(channel) * args.n + args.group + state_of(walker.quarter, j)]) *
                  kLog2E
            : 0.0f;

  // Walks through a piece's chunks, last to first, the next one's inputs on their way meanwhile. A piece begins in the
  // buffer that the one before did not end in, whose last elements some threads may still be finishing.
  int buffer = 0;
  const auto each_chunk = [&](const Piece& piece, const auto& walk) {
    const int last = (piece.tokens - 1) / kChunk;
    Chunk chunk{static_cast<int32_t>(piece.token) + last * kChunk, static_cast<int32_t>(piece.chunk) + last,
                piece.tokens - last * kChunk, buffer};
    inputs.fetch(chunk);
    inputs.wait();
    __syncthreads();  // the chunk is there
    for (int left = last; left >= 0; --left) {
      inputs.prepare(chunk);
      __syncthreads();  // what is made of it is there
      const Chunk next{chunk.token - kChunk, chunk.start - 1, kChunk, 1 - chunk.buffer};
      if (left > 0) inputs.fetch(next);
      walk(chunk);
      inputs.wait();
      __syncthreads();  // the warps' sums and the next chunk are there
      if constexpr (kOutput == BackwardOutput::all) inputs.finish(chunk);
      chunk = next;
    }
    buffer = chunk.buffer;
  };

  if constexpr (kOutput == BackwardOutput::carried_only) {
    const Piece& piece = args.pieces[blockIdx.y];
    if (piece.first) return;
    float total = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) walker.carried[j] = 0;
    each_chunk(piece, [&](const Chunk& chunk) { walker.carry(chunk.tokens, total); });
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (exists(j)) state_at(args.carried, blockIdx.y, j) = walker.carried[j];
    if (walker.quarter == 0 && channel < e) args.delta_sums[static_cast<int64_t>(blockIdx.y) * e + channel] = total;
  } else {
    for (int i = args.workers[blockIdx.y]; i < args.workers[blockIdx.y + 1]; ++i) {
      const Piece& piece = args.pieces[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        walker.carried[j] = 0;
        if (exists(j) && args.carried)
          walker.carried[j] = state_at(args.carried, i, j);
        else if (exists(j) && args.dh)
          walker.carried[j] = state_at(args.dh, piece.slot, j);
      }
      each_chunk(piece, [&](const Chunk& chunk) { walker.walk(chunk); });
      if (args.dh && piece.first)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (exists(j)) state_at(args.dh, piece.slot, j) = walker.carried[j];
    }

#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (exists(j))
        args.dA[(static_cast<int64_t>(blockIdx.y) * kStates + state_of(walker.quarter, j)) * e + channel] =
            walker.dA[j];
    inputs.store_totals();
  }
}

}  // namespace
}  // namespace ssm::cuda
