// Choosing tokens. Greedy: several blocks a row and a warp that joins them. Drawing: one block a row, which finds each
// cut's threshold by radix selection, five bits of the floats a pass, and then walks the ids in ascending order. Every
// thread adds into bins of its own, which are added up in a fixed order, so the same arguments give the same tokens.
#include <climits>
#include <cmath>

#include "core/cuda_kernel.cuh"
#include "engine/sampler_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kSliceThreads = 256, kSlicePacks = 4, kPack = 4;
constexpr int64_t kSlice = kSliceThreads * kSlicePacks * kPack;  // logits of one block, all read at once
constexpr int kJoinWarps = 4;

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kBits = 5, kBins = 1 << kBits;
static_assert(kBins == kWarps, "a warp adds up a bin");

// Unsigned numbers in the order of floats; -0 and 0 are one.
__device__ __forceinline__ uint32_t ordered(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ bool damaged(float logit) { return !(logit < INFINITY); }  // NaN or +inf

// The larger logit is the larger, of equals the lower id.
__device__ __forceinline__ uint64_t ranked(float logit, int64_t id) {
  return static_cast<uint64_t>(ordered(logit)) << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ int64_t id_of(uint64_t rank) { return ~static_cast<uint32_t>(rank); }
__device__ __forceinline__ bool nothing_can_come(uint64_t rank) { return rank >> 32 <= ordered(-INFINITY); }

template <class T>
__device__ __forceinline__ T most_of_lanes(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}
__device__ __forceinline__ double sum_of_lanes(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ __forceinline__ double sums_up_to_lane(double value) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const double before = __shfl_up_sync(~0u, value, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) value += before;
  }
  return value;
}

// Greedy --------------------------------------------------------------------------------------------------------------

template <bool kPacked>
__global__ void __launch_bounds__(kSliceThreads)
    slice_kernel(Rows<const float> logits, int64_t vocab, uint64_t* best, int* failed) {
  wait_for_previous_kernels();
  const float* row = logits[blockIdx.y];
  const int64_t begin = blockIdx.x * kSlice + kPack * threadIdx.x;
  float values[kSlicePacks][kPack];
#pragma unroll
  for (int i = 0; i < kSlicePacks; ++i) {
    const int64_t id = begin + i * kPack * kSliceThreads;
    if (kPacked && id + kPack <= vocab) {
      load_floats<kPack>(row + id, values[i]);
    } else {
#pragma unroll
      for (int k = 0; k < kPack; ++k) values[i][k] = id + k < vocab ? row[id + k] : -INFINITY;
    }
  }
  uint64_t rank = 0;
  bool wrong = false;
#pragma unroll
  for (int i = 0; i < kSlicePacks; ++i) {
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      rank = max(rank, ranked(values[i][k], begin + i * kPack * kSliceThreads + k));
      wrong |= damaged(values[i][k]);
    }
  }
  if (wrong) *failed = 1;
  __shared__ uint64_t ranks[kSliceThreads / 32];
  rank = most_of_lanes(rank);
  if (threadIdx.x % 32 == 0) ranks[threadIdx.x / 32] = rank;
  __syncthreads();  // the warps' best are there
  if (threadIdx.x >= 32) return;
  rank = most_of_lanes(threadIdx.x < kSliceThreads / 32 ? ranks[threadIdx.x] : 0);
  if (threadIdx.x == 0) best[blockIdx.y * static_cast<int64_t>(gridDim.x) + blockIdx.x] = rank;
}

__global__ void __launch_bounds__(32 * kJoinWarps)
    join_kernel(const uint64_t* best, int64_t rows, int64_t slices, int64_t* ids, int* failed) {
  wait_for_previous_kernels();
  const int64_t row = blockIdx.x * static_cast<int64_t>(kJoinWarps) + threadIdx.x / 32;
  if (row >= rows) return;
  uint64_t rank = 0;
  for (int64_t i = threadIdx.x % 32; i < slices; i += 32) rank = max(rank, best[row * slices + i]);
  rank = most_of_lanes(rank);
  if (threadIdx.x % 32 != 0) return;
  if (nothing_can_come(rank)) *failed = 1;
  ids[row] = nothing_can_come(rank) ? 0 : id_of(rank);
}

// Drawing -------------------------------------------------------------------------------------------------------------

struct Block {  // shared memory
  float bins[kBins][kThreads];
  double sums[kBins];
  uint64_t ranks[kWarps];
  int first[kWarps], last[kWarps];
};

// A cut: what ranks higher by `key` stays, of the equals those up to an id.
struct Cut {
  uint32_t key = 0;
  int last_equal = INT_MAX;
  __device__ bool keeps(uint32_t other, int id) const { return other > key || (other == key && id <= last_equal); }
};

struct Row {
  const float* logits;
  int vocab;          // less than 2^31, so that an id is an int here
  float most, scale;  // the scale makes powers of two of them
  Cut likeliest, mass;

  // Proportional to the probability, 1 for the likeliest; of what top-k left.
  __device__ __forceinline__ float weight_before_mass(float logit, int id) const {
    const float power = (logit - most) * scale;
    return power >= -126.0f && likeliest.keeps(ordered(logit), id) ? exp2f(power) : 0;
  }
  __device__ __forceinline__ float weight(float logit, int id) const {
    const float weight = weight_before_mass(logit, id);
    return mass.keeps(__float_as_uint(weight), id) ? weight : 0;
  }
};

// visit(logit, id) for this thread's share of ids [begin, end): with many loads in flight.
template <int kStep, class Visit>
__device__ __forceinline__ void each(const float* logits, int begin, int end, int first, const Visit& visit) {
  constexpr int kLoads = 8;
  for (int at = begin + first; at < end; at += kLoads * kStep) {
    float values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) values[i] = at + i * kStep < end ? logits[at + i * kStep] : 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      if (at + i * kStep < end) visit(values[i], at + i * kStep);
  }
}

struct Threshold {
  uint32_t key;
  double above, need;  // the amount of larger keys; the amount that was asked for
};

// The largest key such that the amounts of it and of larger keys are together at least need(total). Keys are below
// 2^(kTop + kBits).
template <int kTop, class Key, class Amount, class Need>
__device__ Threshold select(Block& block, const Row& row, const Key& key_of, const Amount& amount_of,
                            const Need& need) {
  Threshold found{0, 0, 0};
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  for (int shift = kTop; shift >= 0; shift -= kBits) {
#pragma unroll
    for (int bin = 0; bin < kBins; ++bin) block.bins[bin][threadIdx.x] = 0;
    each<kThreads>(row.logits, 0, row.vocab, static_cast<int>(threadIdx.x), [&](float logit, int id) {
      const uint64_t key = key_of(logit, id);
      if (key >> (shift + kBits) == static_cast<uint64_t>(found.key) >> (shift + kBits))
        block.bins[key >> shift & (kBins - 1)][threadIdx.x] += amount_of(logit, id);
    });
    __syncthreads();  // all bins are filled
    double sum = 0;
#pragma unroll 8
    for (int i = lane; i < kThreads; i += 32) sum += static_cast<double>(block.bins[warp][i]);
    sum = sum_of_lanes(sum);
    if (lane == 0) block.sums[warp] = sum;
    __syncthreads();  // all bins are added up, and none is read any more
    if (shift == kTop) {
      double total = 0;
      for (int bin = kBins; bin-- > 0;) total += block.sums[bin];
      found.need = need(total);
    }
    int chosen = 0;  // rounding may leave the sum short of what is needed: then the least that there is
    double above = found.above, above_chosen = above;
    for (int bin = kBins; bin-- > 0;) {
      if (block.sums[bin] == 0) continue;
      chosen = bin, above_chosen = above;
      above += block.sums[bin];
      if (above >= found.need) break;
    }
    found.above = above_chosen;
    found.key |= static_cast<uint32_t>(chosen) << shift;
    __syncthreads();  // everybody has read the sums
  }
  return found;
}

// The first id at which the amounts of it and of lower ids are together more than target(total); when rounding leaves
// none, the last id that has an amount.
template <class Amount, class Target>
__device__ int walk(Block& block, const Row& row, const Amount& amount_of, const Target& target_of) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int segment = (row.vocab + kWarps - 1) / kWarps;
  double sum = 0;
  const int mine = min(warp * segment, row.vocab);
  each<32>(row.logits, mine, min(mine + segment, row.vocab), lane,
           [&](float logit, int id) { sum += static_cast<double>(amount_of(logit, id)); });
  sum = sum_of_lanes(sum);
  if (lane == 0) block.sums[warp] = sum;
  __syncthreads();  // the segments' amounts are there
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += block.sums[i];
  const double target = target_of(total);
  int chosen = 0;
  double before = 0, running = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (block.sums[i] == 0) continue;
    chosen = i, before = running;
    running += block.sums[i];
    if (running > target) break;
  }
  __syncthreads();  // everybody has read the sums

  // Neighbours to every thread, so that the order of threads is that of ids.
  const int share = (segment + kThreads - 1) / kThreads;
  const int begin = min(chosen * segment + static_cast<int>(threadIdx.x) * share, row.vocab);
  const int end = min(min(begin + share, chosen * segment + segment), row.vocab);
  sum = 0;
  for (int id = begin; id < end; ++id) sum += static_cast<double>(amount_of(row.logits[id], id));
  const double up_to_here = sums_up_to_lane(sum);
  if (lane == 31) block.sums[warp] = up_to_here;
  __syncthreads();  // the warps' amounts are there
  double amount = before;
  for (int i = 0; i < warp; ++i) amount += block.sums[i];
  const double previous = __shfl_up_sync(~0u, up_to_here, 1);
  amount += lane == 0 ? 0 : previous;
  int first = INT_MAX, last = -1;
  for (int id = begin; id < end; ++id) {
    const auto here = static_cast<double>(amount_of(row.logits[id], id));
    if (here == 0) continue;
    amount += here;
    last = id;
    if (amount > target && first == INT_MAX) first = id;
  }
  first = __reduce_min_sync(~0u, first);
  last = __reduce_max_sync(~0u, last);
  if (lane == 0) block.first[warp] = first, block.last[warp] = last;
  __syncthreads();  // the warps' finds are there
  for (int i = 0; i < kWarps; ++i) first = min(first, block.first[i]), last = max(last, block.last[i]);
  __syncthreads();  // everybody has read them
  return first == INT_MAX ? last : first;
}

// The likeliest, on all threads; sets `failed` when a logit is none.
__device__ uint64_t likeliest_of(Block& block, const float* logits, int vocab, int* failed) {
  uint64_t rank = 0;
  bool wrong = false;
  each<kThreads>(logits, 0, vocab, static_cast<int>(threadIdx.x), [&](float logit, int id) {
    rank = max(rank, ranked(logit, id));
    wrong |= damaged(logit);
  });
  if (wrong) *failed = 1;
  rank = most_of_lanes(rank);
  if (threadIdx.x % 32 == 0) block.ranks[threadIdx.x / 32] = rank;
  const bool any = __syncthreads_or(wrong);  // and the warps' likeliest are there
  for (int i = 0; i < kWarps; ++i) rank = max(rank, block.ranks[i]);
  return any ? 0 : rank;
}

struct Choices {
  Rows<const float> logits;
  int64_t vocab;
  const float *temperature, *top_p;
  const int64_t* top_k;
  const double* uniform;
  int64_t* ids;
  int* failed;
};

__global__ void __launch_bounds__(kThreads) draw_kernel(const Choices choices) {
  extern __shared__ __align__(16) std::byte shared[];
  Block& block = *reinterpret_cast<Block*>(shared);
  wait_for_previous_kernels();
  const int64_t at = blockIdx.x;
  const float temperature = choices.temperature[at], top_p = choices.top_p[at];
  const int64_t top_k = choices.top_k[at];
  Row row{.logits = choices.logits[at],
          .vocab = static_cast<int>(choices.vocab),
          .most = 0,
          .scale = 0,
          .likeliest = {},
          .mass = {}};

  const uint64_t rank = likeliest_of(block, row.logits, row.vocab, choices.failed);
  if (nothing_can_come(rank) || temperature == 0) {
    if (threadIdx.x != 0) return;
    if (nothing_can_come(rank)) *choices.failed = 1;
    choices.ids[at] = nothing_can_come(rank) ? 0 : id_of(rank);
    return;
  }
  row.most = row.logits[id_of(rank)];
  // The bound keeps 0 times the scale a number.
  row.scale = static_cast<float>(fmin(1 / static_cast<double>(temperature), 1e30)) * 1.44269504f;  // log2(e)

  if (top_k > 0 && top_k < row.vocab) {
    const Threshold cut = select<30>(
        block, row, [](float logit, int) { return ordered(logit); }, [](float, int) { return 1.0f; },
        [&](double) { return static_cast<double>(top_k); });
    row.likeliest.last_equal = walk(
        block, row, [&](float logit, int) { return ordered(logit) == cut.key ? 1.0f : 0.0f; },
        [&](double) { return cut.need - cut.above - 0.5; });
    row.likeliest.key = cut.key;
  }
  if (top_p < 1) {
    const auto weight = [&](float logit, int id) { return row.weight_before_mass(logit, id); };
    // Weights are at most 1, whose bits are below 2^30.
    const Threshold cut = select<25>(
        block, row, [&](float logit, int id) { return __float_as_uint(weight(logit, id)); }, weight,
        [&](double total) { return static_cast<double>(top_p) * total; });
    const double one = static_cast<double>(__uint_as_float(cut.key));
    const double equals = fmax(1.0, ceil((cut.need - cut.above) / one));
    row.mass.last_equal = walk(
        block, row, [&](float logit, int id) { return __float_as_uint(weight(logit, id)) == cut.key ? 1.0f : 0.0f; },
        [&](double) { return equals - 0.5; });
    row.mass.key = cut.key;
  }
  const int id = walk(
      block, row, [&](float logit, int id) { return row.weight(logit, id); },
      [&](double total) { return choices.uniform[at] * total; });
  if (threadIdx.x == 0) choices.ids[at] = id;
}

}  // namespace

void sample(const SampleRows& args, Stream stream) {
  DCHECK(args.vocab <= INT_MAX / 2);
  const auto logits = rows<const float>(args.logits);
  const int64_t count = args.logits.size(0);
  int* failed = elements<int32_t>(args.failed);
  if (args.all_greedy) {
    const int64_t slices = divide_up(args.vocab, kSlice);
    const Tensor best = Tensor::empty({count, slices}, DType::i64, args.logits.device());
    auto* ranks = static_cast<uint64_t*>(best.raw());
    const dim3 grid(static_cast<unsigned>(slices), static_cast<unsigned>(count));
    launch("sample", aligned(args.logits, kPack * sizeof(float)) ? slice_kernel<true> : slice_kernel<false>, grid,
           kSliceThreads, LaunchOptions{.early = true}, stream, logits, args.vocab, ranks, failed);
    launch("sample", join_kernel, static_cast<unsigned>(divide_up(count, kJoinWarps)), 32 * kJoinWarps,
           LaunchOptions{.early = true}, stream, ranks, count, slices, elements<int64_t>(args.ids), failed);
    return;
  }
  const Choices choices{.logits = logits,
                        .vocab = args.vocab,
                        .temperature = elements<float>(args.temperature),
                        .top_p = elements<float>(args.top_p),
                        .top_k = elements<int64_t>(args.top_k),
                        .uniform = elements<double>(args.uniform),
                        .ids = elements<int64_t>(args.ids),
                        .failed = failed};
  launch("sample", draw_kernel, static_cast<unsigned>(count), kThreads,
         LaunchOptions{.shared = sizeof(Block), .early = true}, stream, choices);
}

}  // namespace ssm::cuda
