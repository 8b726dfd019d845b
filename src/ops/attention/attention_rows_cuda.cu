// attention of few rows over many keys, which is how text is written: bound by reading keys and values. A block takes
// one row and head through a range of 256 keys; lanes side by side read a key's 16-byte chunks. A second kernel joins
// the ranges in order. Equations: attention.h, README.md.
#include <algorithm>
#include <cmath>

#include "ops/attention/attention_cuda.cuh"
#include "ops/sequence_of.cuh"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 128, kRange = 256, kAhead = 4;  // keys that a lane reads before it uses the first

// What the keys of a range add up to, relative to their largest score, in powers of 2.
struct Partial {
  float* data;  // (t, m, ranges, 2 + p): largest, sum of weights, weighted values
  int64_t ranges, heads, p;
  __device__ float* at(int64_t row, int64_t head, int64_t range) const {
    return data + ((row * heads + head) * ranges + range) * (2 + p);
  }
};

// The largest score of none, or of none but NaN, must not make another NaN.
__device__ __forceinline__ float finite(float largest) { return largest == -INFINITY ? 0 : largest; }

// kLanes: lanes of a key.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) range_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v,
                                                         AttentionPlaces places, int64_t sequences, Partial partial) {
  constexpr int kVector = 16 / sizeof(T), kGroups = kThreads / kLanes;
  __shared__ float largest_of[kGroups], sum_of[kGroups], values_of[kThreads * kVector];
  const int64_t row = blockIdx.x / places.heads, head = blockIdx.x % places.heads, range = blockIdx.y;
  const int64_t s = sequence_of(places.offsets, sequences, row);
  const int64_t last = places.keys_before(s) + row - places.offsets[s], begin = range * kRange;
  if (begin > last) return;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
  const int c = lane * kVector, p = static_cast<int>(places.p);
  const bool there = c < p;
  const int64_t column = places.group_of(head) * p + c;
  float query[kVector] = {}, sums[kVector] = {}, largest = -INFINITY, sum = 0;
  if (there) load_floats(q[row] + head * p + c, query);
#pragma unroll
  for (int i = 0; i < kVector; ++i) query[i] *= places.scale * 1.4426950408889634f;
  const float slope = places.slopes ? places.slopes[head] * 1.4426950408889634f : 0;
  for (int64_t first = begin; first <= last && first < begin + kRange; first += kAhead * kGroups) {
    const int64_t key = first + group;
    Pack<T, kVector> K[kAhead] = {}, V[kAhead] = {};
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t j = key + a * kGroups;
      if (!there || j > last || j >= begin + kRange) continue;
      K[a] = *reinterpret_cast<const Pack<T, kVector>*>(places.key(k, s, j) + column);
      V[a] = *reinterpret_cast<const Pack<T, kVector>*>(places.key(v, s, j) + column);
    }
    float score[kAhead], most = largest;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t j = key + a * kGroups;
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kVector; ++i) dot = fmaf(query[i], to_float(K[a].value[i]), dot);
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, step);
      score[a] = j > last || j >= begin + kRange ? -INFINITY : dot + slope * static_cast<float>(j - last);
      most = fmaxf(most, score[a]);
    }
    const float base = finite(most), before = exp2f(largest - base);
    largest = most;
    sum *= before;
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[i] *= before;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const float weight = exp2f(score[a] - base);
      sum += weight;
#pragma unroll
      for (int i = 0; i < kVector; ++i) sums[i] = fmaf(weight, to_float(V[a].value[i]), sums[i]);
    }
  }
  if (lane == 0) largest_of[group] = largest, sum_of[group] = sum;
#pragma unroll
  for (int i = 0; i < kVector; ++i) values_of[threadIdx.x * kVector + i] = sums[i];
  __syncthreads();
  float most = -INFINITY;
  for (int g = 0; g < kGroups; ++g) most = fmaxf(most, largest_of[g]);
  const float base = finite(most);
  float* const to = partial.at(row, head, range);
  for (int channel = static_cast<int>(threadIdx.x); channel < p; channel += kThreads) {
    float all = 0;
    for (int g = 0; g < kGroups; ++g)
      all = fmaf(exp2f(largest_of[g] - base), values_of[g * kLanes * kVector + channel], all);
    to[2 + channel] = all;
  }
  if (threadIdx.x != 0) return;
  float all = 0;
  for (int g = 0; g < kGroups; ++g) all = fmaf(exp2f(largest_of[g] - base), sum_of[g], all);
  to[0] = most, to[1] = all;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    join_kernel(AttentionPlaces places, int64_t sequences, Partial partial, Rows<T> out) {
  const int64_t row = blockIdx.x / places.heads, head = blockIdx.x % places.heads;
  const int64_t s = sequence_of(places.offsets, sequences, row);
  const int64_t ranges = (places.keys_before(s) + row - places.offsets[s]) / kRange + 1;
  float most = -INFINITY;
  for (int64_t range = 0; range < ranges; ++range) most = fmaxf(most, partial.at(row, head, range)[0]);
  const float base = finite(most);
  for (int64_t c = threadIdx.x; c < places.p; c += kThreads) {
    float sum = 0, total = 0;
    for (int64_t range = 0; range < ranges; ++range) {
      const float* part = partial.at(row, head, range);
      const float weight = exp2f(part[0] - base);
      total = fmaf(weight, part[1], total);
      sum = fmaf(weight, part[2 + c], sum);
    }
    out[row][head * places.p + c] = from_float<T>(sum / total);
  }
}

template <class T, int kLanes>
void forward(const AttentionForward& args, Stream stream) {
  constexpr const char* kName = "attention of few rows";
  const AttentionTables tables(args.sizes, args.seqs, args.q.size(0), args.k);
  int64_t keys = 0;
  for (int64_t s = 0; s < args.seqs.count(); ++s)
    keys = std::max(keys, args.sizes.before[static_cast<size_t>(s)] + args.seqs.length(s));
  const int64_t t = args.q.size(0), ranges = divide_up(keys, kRange);
  const Tensor sums = Tensor::empty({t, args.sizes.heads, ranges, 2 + args.sizes.p}, DType::f32, args.q.device());
  const Partial partial{elements<float>(sums), ranges, args.sizes.heads, args.sizes.p};
  const auto blocks = static_cast<unsigned>(t * args.sizes.heads);
  launch(kName, range_kernel<T, kLanes>, dim3(blocks, static_cast<unsigned>(ranges)), kThreads, stream,
         rows<const T>(args.q), key_rows<const T>(args.k), key_rows<const T>(args.v), tables.places, args.seqs.count(),
         partial);
  launch(kName, join_kernel<T>, dim3(blocks), kThreads, stream, tables.places, args.seqs.count(), partial,
         rows<T>(args.out));
}

template <class T>
void forward_of(const AttentionForward& args, Stream stream) {
  const int64_t chunks = args.sizes.p * static_cast<int64_t>(sizeof(T)) / 16;
  if (chunks <= 2) return forward<T, 2>(args, stream);
  if (chunks <= 8) return forward<T, 8>(args, stream);
  if (chunks <= 16) return forward<T, 16>(args, stream);
  forward<T, 32>(args, stream);
}

}  // namespace

void attention_rows_forward(const AttentionForward& args, Stream stream) {
  with_element(args.q.dtype(), "attention", [&]<class T>(T) { forward_of<T>(args, stream); });
}

}  // namespace ssm::cuda
