// What the two passes of ssd on a GPU share. A thread keeps one state of kSsdTile neighbouring channels of a head in
// registers and walks the tokens; the threads of a block are the states, padded to whole warps, of one or more such
// tiles. So B and C are a number a thread and token, sums over channels stay in a thread, and sums over states cross
// lanes (sum_states), then warps.
#pragma once

#include "core/cuda_kernel.cuh"
#include "ops/ssd/ssd.h"

namespace ssm::cuda {

constexpr int kSsdTile = 16;      // channels of a thread
constexpr int kSsdRun = 16;       // tokens whose x, dy and steps are in shared memory at a time
constexpr int kSsdGroup = 4;      // tokens whose B and C are in registers at a time
constexpr int kSsdThreads = 512;  // of a block at most: 128 registers each
static_assert(kSsdSpan % kSsdRun == 0 && kSsdRun % kSsdGroup == 0);

template <class T>
struct SsdInputs {
  Rows<const T> x, dt, B, C;  // (t, m p), (t, m), (t, g n) twice
  const float *A_log, *D, *dt_bias;
  int64_t m, p, g, n;
  bool D_of_channels;
  float dt_min, dt_max;

  template <class Args>
  explicit SsdInputs(const Args& args)
      : x(rows<const T>(args.x)),
        dt(rows<const T>(args.dt)),
        B(rows<const T>(args.B)),
        C(rows<const T>(args.C)),
        A_log(elements<const float>(args.A_log)),
        D(elements<const float>(args.D)),
        dt_bias(elements<const float>(args.dt_bias)),
        m(args.sizes.m),
        p(args.sizes.p),
        g(args.sizes.g),
        n(args.sizes.n),
        D_of_channels(args.D && args.D.count() != args.sizes.m),
        dt_min(static_cast<float>(args.dt_min)),
        dt_max(static_cast<float>(args.dt_max)) {}

  __device__ float decay_rate(int64_t head) const { return -expf(A_log[head]); }  // A
  __device__ float raw(int64_t t, int64_t head) const { return to_float(dt[t][head]) + (dt_bias ? dt_bias[head] : 0); }
  __device__ static float softplus(float v) { return v > 20 ? v : log1pf(expf(v)); }
  __device__ float delta(int64_t t, int64_t head) const {  // (1)
    const float step = softplus(raw(t, head));
    return step < dt_min ? dt_min : step > dt_max ? dt_max : step;
  }
  __device__ float D_at(int64_t head, int64_t channel) const {
    return !D ? 0 : D[D_of_channels ? head * p + channel : head];
  }
};

// How heads are laid over blocks.
struct SsdPlan {
  int states;     // threads of a tile: n, padded to whole warps
  int tiles;      // of a block
  int64_t parts;  // blocks of a head

  SsdPlan(int64_t n, int64_t p) {
    require(n <= kSsdThreads, "ssd: ", n, " states on a GPU; expected at most ", kSsdThreads);
    const int64_t all = divide_up(p, kSsdTile);
    states = static_cast<int>(divide_up(n, 32) * 32);
    tiles = static_cast<int>(std::min<int64_t>(all, kSsdThreads / states));
    parts = divide_up(all, tiles);
  }
  __host__ __device__ int threads() const { return states * tiles; }
  __host__ __device__ int width() const { return tiles * kSsdTile; }  // channels of a block
  __host__ __device__ int warps() const { return states / 32; }       // of a tile
};

// A thread's place.
struct SsdPlace {
  int64_t sequence, head, part;
  int64_t first;       // channel of the head: the first of the block
  int tile, k;         // the thread's tile, and its state
  int64_t tile_first;  // channel of the head: the first of the tile
  int64_t column;      // of B and C
  bool padding;        // no such state

  template <class T>
  __device__ SsdPlace(const SsdInputs<T>& in, const SsdPlan& plan, int64_t work) {
    part = work % plan.parts;
    head = work / plan.parts % in.m;
    sequence = work / plan.parts / in.m;
    first = part * plan.width();
    tile = static_cast<int>(threadIdx.x) / plan.states;
    k = static_cast<int>(threadIdx.x) % plan.states;
    tile_first = first + tile * kSsdTile;
    column = head / (in.m / in.g) * in.n + k;
    padding = k >= in.n;
  }
};

// A head's states lie (n, p): this thread's, zero where there is none. Packs when rows begin on 16 bytes.
template <class T>
__device__ __forceinline__ void load_states(const SsdInputs<T>& in, const SsdPlace& at, const float* from,
                                            float (&states)[kSsdTile]) {
  const float* row = from + at.k * in.p + at.tile_first;
  if (in.p % 4 == 0) {
#pragma unroll
    for (int j = 0; j < kSsdTile; j += 4) {
      float pack[4] = {};
      if (!at.padding && at.tile_first + j < in.p) load_floats<4>(row + j, pack);
#pragma unroll
      for (int i = 0; i < 4; ++i) states[j + i] = pack[i];
    }
  } else {
#pragma unroll
    for (int j = 0; j < kSsdTile; ++j) states[j] = !at.padding && at.tile_first + j < in.p ? row[j] : 0;
  }
}
template <class T>
__device__ __forceinline__ void store_states(const SsdInputs<T>& in, const SsdPlace& at, float* to,
                                             const float (&states)[kSsdTile]) {
  if (at.padding) return;
  float* row = to + at.k * in.p + at.tile_first;
  if (in.p % 4 == 0) {
#pragma unroll
    for (int j = 0; j < kSsdTile; j += 4)
      if (at.tile_first + j < in.p) store_floats<4>(row + j, {states[j], states[j + 1], states[j + 2], states[j + 3]});
  } else {
#pragma unroll
    for (int j = 0; j < kSsdTile; ++j)
      if (at.tile_first + j < in.p) row[j] = states[j];
  }
}

// The steps and decays of up to kSsdRun tokens from `begin`; those that are not there change nothing.
template <class T>
__device__ __forceinline__ void stage_steps(const SsdInputs<T>& in, const SsdPlace& at, int64_t begin, int count,
                                            float* delta, float* decay) {
  if (threadIdx.x >= kSsdRun) return;
  const bool there = static_cast<int>(threadIdx.x) < count;
  delta[threadIdx.x] = there ? in.delta(begin + threadIdx.x, at.head) : 0;
  decay[threadIdx.x] = there ? expf(delta[threadIdx.x] * in.decay_rate(at.head)) : 1;
}
// The block's channels of x or dy, (kSsdRun, width), zero where there are none.
template <class T>
__device__ __forceinline__ void stage_channels(const SsdInputs<T>& in, const SsdPlan& plan, const SsdPlace& at,
                                               const Rows<const T>& from, int64_t begin, int count, float* to) {
  for (int i = static_cast<int>(threadIdx.x); i < kSsdRun * plan.width(); i += plan.threads()) {
    const int token = i / plan.width();
    const int64_t channel = at.first + i % plan.width();
    to[i] = token < count && channel < in.p ? to_float(from[begin + token][at.head * in.p + channel]) : 0;
  }
}
// This thread's numbers of B or C for kSsdGroup tokens.
template <class T>
__device__ __forceinline__ void load_group(const Rows<const T>& from, const SsdPlace& at, int64_t begin, int count,
                                           float (&to)[kSsdGroup]) {
#pragma unroll
  for (int i = 0; i < kSsdGroup; ++i) to[i] = !at.padding && i < count ? to_float(from[begin + i][at.column]) : 0;
}

// This thread's kSsdTile numbers of a token, from shared memory.
__device__ __forceinline__ void load_tile(const float* from, float (&to)[kSsdTile]) {
#pragma unroll
  for (int j = 0; j < kSsdTile; j += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + j);
    to[j] = four.x, to[j + 1] = four.y, to[j + 2] = four.z, to[j + 3] = four.w;
  }
}

__device__ __forceinline__ void advance(float (&S)[kSsdTile], float decay, float input, const float (&x)[kSsdTile]) {
#pragma unroll
  for (int j = 0; j < kSsdTile; ++j) S[j] = fmaf(decay, S[j], input * x[j]);  // (2); input is delta B
}

// Adds up each value over the lanes; lanes 2j and 2j + 1 return the sum of values[j]. Halves are exchanged, so it takes
// 16 shuffles and not 80. A recursion, since a loop over halves is not unrolled, and then the values lie in memory.
template <int kHalf = kSsdTile / 2>
__device__ __forceinline__ float sum_states(const float (&values)[2 * kHalf]) {
  const bool upper = threadIdx.x & (2 * kHalf);
  float sums[kHalf];
#pragma unroll
  for (int j = 0; j < kHalf; ++j) {
    const float given = upper ? values[j] : values[j + kHalf];
    sums[j] = (upper ? values[j + kHalf] : values[j]) + __shfl_xor_sync(~0u, given, 2 * kHalf);
  }
  if constexpr (kHalf > 1)
    return sum_states<kHalf / 2>(sums);
  else
    return sums[0] + __shfl_xor_sync(~0u, sums[0], 1);
}
__device__ __forceinline__ float sum_lanes(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// Which row of `starts` is the first of a sequence. All threads of a block must call it.
__device__ __forceinline__ int64_t first_span(const int64_t* offsets, int64_t sequence) {
  __shared__ unsigned long long spans;
  __syncthreads();  // nobody reads the last result any more
  if (threadIdx.x == 0) spans = 0;
  __syncthreads();  // it is zero
  unsigned long long mine = 0;
  for (int64_t s = threadIdx.x; s < sequence; s += blockDim.x)
    mine += static_cast<unsigned long long>((offsets[s + 1] - offsets[s] + kSsdSpan - 1) / kSsdSpan);
  if (mine > 0) atomicAdd(&spans, mine);  // of integers: the order is no matter
  __syncthreads();                        // all have added
  return static_cast<int64_t>(spans);
}

}  // namespace ssm::cuda
