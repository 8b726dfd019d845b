// cross_entropy on a GPU. One block a row: a pass for the largest logit and the sum of exponentials, (4), and, where a
// gradient is wanted, a second one for the slopes, (5), over the row kept in shared memory. The form fused with the
// head makes f32 logits of some rows at a time and turns them into slopes in place. Equations: README.md.
#include <algorithm>

#include "core/cuda_kernel.cuh"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/linear/gemm.h"

namespace ssm::cuda {
namespace {

constexpr int kPack = 8;  // neighbours a thread takes at once
// A row that fits is kept in shared memory between its two passes, one block a multiprocessor: 57,344 words at most.
constexpr int64_t kMostHeldBytes = 224 * 1024;
template <bool kHeld>
constexpr int kThreadsOf = kHeld ? 1024 : 512;
constexpr int64_t kScratchBytes = int64_t{512} << 20;
constexpr int64_t kRowMultiple = 128;  // whole tiles of the product

struct Peak {
  float largest, sum;  // sum of exp(l - largest)
};

__device__ __forceinline__ float exponential(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504f));
  return result;
}

// exp(l - largest), where a row that is -infinity so far counts for nothing.
__device__ __forceinline__ float relative(float l, float largest) {
  return exponential(l - (largest == -INFINITY ? 0.0f : largest));
}

__device__ __forceinline__ Peak merge(const Peak& a, const Peak& b) {
  const float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * relative(a.largest, largest) + b.sum * relative(b.largest, largest)};
}

// kPack logits from `first`; what lies beyond the row is -infinity.
template <bool kAligned, class T>
__device__ __forceinline__ void load_logits(const T* row, int64_t first, int64_t vocab, float (&l)[kPack]) {
  if (kAligned && first + kPack <= vocab) return load_floats(row + first, l);
#pragma unroll
  for (int i = 0; i < kPack; ++i) l[i] = first + i < vocab ? to_float(row[first + i]) : -INFINITY;
}

// The peak of a row, the same in all threads. With kHeld each thread keeps what it read in `held`, for itself.
template <int kThreads, bool kAligned, bool kHeld, class T>
__device__ Peak peak_of(const T* row, int64_t vocab, float* held) {
  __shared__ Peak peaks[kThreads / 32];
  Peak mine{-INFINITY, 0};
  float l[kPack], next[kPack];
  int64_t first = int64_t{threadIdx.x} * kPack;
  load_logits<kAligned>(row, first, vocab, l);
  for (; first < vocab; first += kThreads * kPack) {
    load_logits<kAligned>(row, first + kThreads * kPack, vocab, next);  // on its way while this pack is worked on
    if constexpr (kHeld) store_floats(held + first, l);
    float largest = mine.largest;
#pragma unroll
    for (int i = 0; i < kPack; ++i) largest = fmaxf(largest, l[i]);
    mine.sum *= relative(mine.largest, largest);
    mine.largest = largest;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      mine.sum += relative(l[i], largest);
      l[i] = next[i];
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    mine = merge(
        mine, {__shfl_xor_sync(0xffffffffu, mine.largest, distance), __shfl_xor_sync(0xffffffffu, mine.sum, distance)});
  if (threadIdx.x % 32 == 0) peaks[threadIdx.x / 32] = mine;
  __syncthreads();
  Peak all = peaks[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) all = merge(all, peaks[warp]);
  return all;
}

struct RowTargets {
  const int64_t* ids;
  int64_t ignore;
};

// losses (t) and, with kSlopes, slopes = scale * (p - [v = target]), a row each. slopes may begin where the logits do,
// in elements that are no wider: a pack is stored after all packs up to it were read.
template <class In, class Out, bool kAligned, bool kLosses, bool kSlopes, bool kHeld>
__global__ void __launch_bounds__(kThreadsOf<kHeld>)
    cross_entropy_kernel(Rows<const In> logits, int64_t vocab, RowTargets targets, float* losses, Rows<Out> slopes,
                         float share, const float* dloss) {
  constexpr int kThreads = kThreadsOf<kHeld>;
  extern __shared__ __align__(16) float held[];
  const int64_t t = blockIdx.x;
  const In* row = logits[t];
  const int64_t target = targets.ids[t];
  const bool counted = target != targets.ignore;
  Peak peak{0, 1};
  float at_target = 0;
  if (counted) {
    at_target = to_float(row[target]);  // before slopes may replace it
    peak = peak_of<kThreads, kAligned, kHeld>(row, vocab, held);
    // The brackets of (4) in double: a small difference of large numbers.
    if (kLosses && threadIdx.x == 0)
      losses[t] = static_cast<float>(log(static_cast<double>(peak.sum)) +
                                     (static_cast<double>(peak.largest) - static_cast<double>(at_target)));
  } else if (kLosses && threadIdx.x == 0) {
    losses[t] = 0;
  }
  if constexpr (kSlopes) {
    const float scale = counted ? share * (dloss ? *dloss : 1.0f) : 0.0f, weight = scale / peak.sum;
    __syncthreads();  // the target's logit was read, and with kHeld the whole row
    for (int64_t base = 0; base < vocab; base += kThreads * kPack) {
      const int64_t first = base + int64_t{threadIdx.x} * kPack;
      float l[kPack];
      if (kHeld && first >= vocab) break;
      if (counted) {
        if constexpr (kHeld)
          load_floats(held + first, l);
        else
          load_logits<kAligned>(row, first, vocab, l);
      }
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        l[i] = counted ? weight * relative(l[i], peak.largest) : 0.0f;
        if (counted && first + i == target) l[i] -= scale;
      }
      if constexpr (!kHeld) __syncthreads();  // where this pack goes, logits of this round were read
      if (kAligned && first + kPack <= vocab) {
        store_floats(slopes[t] + first, l);
      } else {
#pragma unroll
        for (int i = 0; i < kPack; ++i)
          if (first + i < vocab) slopes[t][first + i] = from_float<Out>(l[i]);
      }
    }
  }
}

// loss = sum of losses / counted, in double and in a fixed order: one block.
__global__ void __launch_bounds__(1024) mean_kernel(const float* losses, int64_t t, int64_t counted, float* loss) {
  __shared__ double sums[1024];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < t; i += 1024) sum += static_cast<double>(losses[i]);
  sums[threadIdx.x] = sum;
  for (int half = 512; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *loss = static_cast<float>(counted ? sums[0] / static_cast<double>(counted) : 0.0);
}

// to = scale * from (+ to), element by element of row-strided matrices.
template <class T>
__global__ void scale_kernel(Rows<const T> from, const float* scale, Rows<T> to, int64_t count, int64_t columns,
                             bool add) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t row = i / columns, column = i % columns;
    const float value = *scale * to_float(from[row][column]);
    to[row][column] = from_float<T>(add ? value + to_float(to[row][column]) : value);
  }
}

// The same where both are contiguous and on 16 bytes.
template <class T>
__global__ void scale_dense_kernel(const T* from, const float* scale, T* to, int64_t packs, bool add) {
  constexpr int kWidth = 16 / sizeof(T);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < packs; i += step) {
    float a[kWidth], b[kWidth] = {};
    load_floats(from + i * kWidth, a);
    if (add) load_floats(to + i * kWidth, b);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) a[j] = fmaf(*scale, a[j], b[j]);
    store_floats(to + i * kWidth, a);
  }
}

void scale_into(const Tensor& from, const float* scale, const Tensor& to, bool add, Stream stream) {
  const auto blocks = [](int64_t count) {
    return dim3(static_cast<unsigned>(std::min<int64_t>(4096, divide_up(count, 256))));
  };
  with_element(to.dtype(), "linear_cross_entropy", [&](auto element) {
    using T = decltype(element);
    constexpr int64_t kWidth = 16 / sizeof(T);
    if (from.contiguous() && to.contiguous() && aligned(from.reshape({from.count()}), 16) &&
        aligned(to.reshape({to.count()}), 16) && to.count() % kWidth == 0)
      launch("linear_cross_entropy", scale_dense_kernel<T>, blocks(to.count() / kWidth), dim3(256), stream,
             elements<const T>(from), scale, elements<T>(to), to.count() / kWidth, add);
    else
      launch("linear_cross_entropy", scale_kernel<T>, blocks(to.count()), dim3(256), stream, rows<const T>(from), scale,
             rows<T>(to), to.count(), to.size(1), add);
  });
}

RowTargets row_targets(const Targets& targets) { return {elements<const int64_t>(targets.ids), targets.ignore}; }
float share(const Targets& targets) { return targets.counted ? 1.0f / static_cast<float>(targets.counted) : 0.0f; }

void mean(const Tensor& losses, int64_t counted, const Tensor& loss, Stream stream) {
  launch("cross_entropy", mean_kernel, dim3(1), dim3(1024), stream, elements<const float>(losses), losses.count(),
         counted, elements<float>(loss));
}

template <class In, class Out, bool kLosses, bool kSlopes>
void run_rows(const Tensor& logits, const Targets& targets, int64_t first_target, const Tensor& losses,
              const Tensor& slopes, float share, const float* dloss, Stream stream) {
  const bool is_aligned = aligned(logits, 16) && aligned(slopes, 16);
  RowTargets where = row_targets(targets);
  where.ids += first_target;
  const int64_t held_bytes = divide_up(logits.size(1), kPack) * kPack * bytes_of(DType::f32);
  const bool held = kSlopes && held_bytes <= kMostHeldBytes;
  const auto kernel = is_aligned ? (held ? cross_entropy_kernel<In, Out, true, kLosses, kSlopes, kSlopes>
                                         : cross_entropy_kernel<In, Out, true, kLosses, kSlopes, false>)
                                 : (held ? cross_entropy_kernel<In, Out, false, kLosses, kSlopes, kSlopes>
                                         : cross_entropy_kernel<In, Out, false, kLosses, kSlopes, false>);
  launch("cross_entropy", kernel, dim3(static_cast<unsigned>(logits.size(0))),
         dim3(held ? kThreadsOf<true> : kThreadsOf<false>), {.shared = held ? static_cast<size_t>(held_bytes) : 0},
         stream, rows<const In>(logits), logits.size(1), where,
         losses ? elements<float>(losses) + first_target : nullptr, rows<Out>(slopes), share, dloss);
}

// Rows of logits that are made at once: even parts of t, within the scratch.
int64_t rows_of_chunk(int64_t t, int64_t bytes_a_row) {
  const int64_t most = std::max(kRowMultiple, kScratchBytes / bytes_a_row / kRowMultiple * kRowMultiple);
  return divide_up(divide_up(t, divide_up(t, most)), kRowMultiple) * kRowMultiple;
}

}  // namespace

void cross_entropy_forward(const CrossEntropyForward& args, Stream stream) {
  with_element(args.logits.dtype(), "cross_entropy", [&](auto element) {
    using T = decltype(element);
    run_rows<T, T, true, false>(args.logits, args.targets, 0, args.losses, {}, 0, nullptr, stream);
  });
  mean(args.losses, args.targets.counted, args.loss, stream);
}

void cross_entropy_backward(const CrossEntropyBackward& args, Stream stream) {
  with_element(args.logits.dtype(), "cross_entropy", [&](auto element) {
    using T = decltype(element);
    run_rows<T, T, false, true>(args.logits, args.targets, 0, {}, args.dlogits, share(args.targets),
                                elements<const float>(args.dloss), stream);
  });
}

void linear_cross_entropy_forward(const LinearCrossEntropyForward& args, Stream stream) {
  const int64_t t = args.x.size(0), vocab = args.weight.size(0);
  const DType dtype = args.x.dtype();
  const bool slopes_wanted = args.dx || args.dweight;
  if (t == 0) {
    if (args.dweight) fill_zero(args.dweight);
    return mean(args.losses, 0, args.loss, stream);
  }
  const int64_t width = divide_up(vocab, kPack) * kPack;  // rows on 16 bytes, as slopes too
  const int64_t chunk = rows_of_chunk(t, width * bytes_of(DType::f32));
  const Tensor scratch = Tensor::empty({std::min(chunk, t), width}, DType::f32, args.x.device());
  for (int64_t first = 0; first < t; first += chunk) {
    const int64_t last = std::min(t, first + chunk);
    const Tensor x = args.x.rows(first, last), logits = scratch.rows(0, last - first).columns(0, vocab);
    if (dtype == args.weight.dtype())
      gemm(x, Transpose::no, args.weight, Transpose::yes, logits, false, stream);  // (1)
    else
      gemm_wide(x, args.weight, logits, stream);
    if (!slopes_wanted) {
      run_rows<float, float, true, false>(logits, args.targets, first, args.losses, {}, 0, nullptr, stream);
      continue;
    }
    // Slopes for a weight of 1 a token, in f16 of 2^15: at most that, and normal numbers down to 2^-29. The products
    // bring in 1 / counted.
    const float unit = dtype == DType::f16 ? 32768.0f : 1.0f;
    const Shape strides{width * bytes_of(DType::f32) / bytes_of(dtype), 1};
    const Tensor slopes = Tensor::borrow(logits.raw(), logits.shape(), dtype, {}, &strides, logits.device());
    with_element(dtype, "linear_cross_entropy", [&](auto element) {
      using T = decltype(element);
      run_rows<float, T, true, true>(logits, args.targets, first, args.losses, slopes, unit, nullptr, stream);
    });
    const float scale = share(args.targets) / unit;
    if (args.dx)  // (6)
      gemm(slopes, Transpose::no, args.weight, Transpose::no, args.dx.rows(first, last), false, stream, {}, scale);
    if (args.dweight)  // (7)
      gemm(slopes, Transpose::yes, x, Transpose::no, args.dweight, first > 0, stream, {}, scale);
  }
  mean(args.losses, args.targets.counted, args.loss, stream);
}

void linear_cross_entropy_backward(const LinearCrossEntropyBackward& args, Stream stream) {
  const float* dloss = elements<const float>(args.dloss);
  if (args.dx) scale_into(args.mean_dx, dloss, args.dx, args.add_dx, stream);
  if (args.dweight) scale_into(args.mean_dweight, dloss, args.dweight, args.add_dweight, stream);
}

}  // namespace ssm::cuda
