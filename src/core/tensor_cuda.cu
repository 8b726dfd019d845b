// Copies, conversions and sums of tensors on one GPU: one thread an element (or a pack of neighbours where everything
// is contiguous), any strides.
#include "core/cuda_kernel.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;

struct Strides {
  int64_t size[Shape::kMaxRank], to[Shape::kMaxRank], from[Shape::kMaxRank];
  int64_t count;
};

// Dimensions right-aligned, so that the last is the fastest.
Strides strides_of(const Tensor& to, const Tensor& from) {
  Strides result{};
  result.count = to.count();
  for (int i = 0; i < Shape::kMaxRank; ++i) {
    const int dim = i - (Shape::kMaxRank - to.rank());
    result.size[i] = dim < 0 ? 1 : to.size(dim);
    result.to[i] = dim < 0 ? 0 : to.stride(dim);
    result.from[i] = dim < 0 ? 0 : from.stride(dim);
  }
  return result;
}

template <class To, class From>
__device__ To converted(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else
    return from_float<To>(to_float(value));
}

template <class To, class From, bool kAdd>
__global__ void strided_kernel(To* to, const From* from, Strides s) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < s.count; i += step) {
    int64_t rest = i, at_to = 0, at_from = 0;
#pragma unroll
    for (int dim = Shape::kMaxRank - 1; dim >= 0; --dim) {
      const int64_t index = rest % s.size[dim];
      rest /= s.size[dim];
      at_to += index * s.to[dim];
      at_from += index * s.from[dim];
    }
    if constexpr (kAdd)
      to[at_to] = from_float<To>(to_float(to[at_to]) + to_float(from[at_from]));
    else
      to[at_to] = converted<To>(from[at_from]);
  }
}

// Contiguous both, in packs of 8; `count` need not be a multiple.
template <class To, class From, bool kAdd>
__global__ void dense_kernel(To* to, const From* from, int64_t count) {
  constexpr int kPack = 8;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * kPack;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack; i < count; i += step) {
    if (i + kPack <= count) {
      float values[kPack], sums[kPack];
      load_floats<kPack>(from + i, values);
      if constexpr (kAdd) {
        load_floats<kPack>(to + i, sums);
#pragma unroll
        for (int k = 0; k < kPack; ++k) values[k] += sums[k];
      }
      store_floats<kPack>(to + i, values);
    } else {
      for (int64_t k = i; k < count; ++k) {
        if constexpr (kAdd)
          to[k] = from_float<To>(to_float(to[k]) + to_float(from[k]));
        else
          to[k] = converted<To>(from[k]);
      }
    }
  }
}

// Bytes, in 16 at a time, four of them under way in each thread; the last block also takes what is left.
constexpr int kCopies = 4;
__global__ void __launch_bounds__(kThreads) copy_kernel(uint4* to, const uint4* from, int64_t packs, int64_t bytes) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kCopies + threadIdx.x;
  uint4 held[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i)
    if (first + i * kThreads < packs) held[i] = from[first + i * kThreads];
#pragma unroll
  for (int i = 0; i < kCopies; ++i)
    if (first + i * kThreads < packs) to[first + i * kThreads] = held[i];
  const int64_t rest = packs * 16 + threadIdx.x;
  if (blockIdx.x == gridDim.x - 1 && rest < bytes)
    reinterpret_cast<std::byte*>(to)[rest] = reinterpret_cast<const std::byte*>(from)[rest];
}

int64_t blocks_for(int64_t threads) { return std::min<int64_t>(divide_up(threads, kThreads), 1 << 16); }

template <bool kAdd>
void run(const Tensor& to, const Tensor& from) {
  const Stream queue = stream(to.device());
  const bool dense = to.contiguous() && from.contiguous() && aligned(to, 16) && aligned(from, 16);
  with_element(to.dtype(), "copy", [&]<class To>(To) {
    with_element(from.dtype(), "copy", [&]<class From>(From) {
      if constexpr (!kAdd || std::is_same_v<To, From>) {
        if (dense)
          launch("copy", dense_kernel<To, From, kAdd>, static_cast<unsigned>(blocks_for(divide_up(to.count(), 8))),
                 kThreads, queue, elements<To>(to), elements<From>(from), to.count());
        else
          launch("copy", strided_kernel<To, From, kAdd>, static_cast<unsigned>(blocks_for(to.count())), kThreads, queue,
                 elements<To>(to), elements<From>(from), strides_of(to, from));
      }
    });
  });
}

}  // namespace

void copy(const Tensor& to, const Tensor& from) {
  const bool same = to.dtype() == from.dtype(), bytes = same && to.contiguous() && from.contiguous();
  const auto begins = [](const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.raw()); };
  if (bytes && (begins(to) | begins(from)) % 16 == 0) {
    // A kernel where the driver could copy: it is faster, and the shorter node of a graph.
    const int64_t packs = to.bytes() / 16, blocks = divide_up(std::max<int64_t>(packs, 1), kThreads * kCopies);
    launch("copy", copy_kernel, static_cast<unsigned>(blocks), kThreads, stream(to.device()),
           static_cast<uint4*>(to.raw()), static_cast<const uint4*>(from.raw()), packs, to.bytes());
  } else if (same && (!is_float(to.dtype()) || to.dtype() == DType::f64)) {
    require(bytes, "copy: strided ", name_of(to.dtype()), " on a GPU");
    copy_bytes(to.raw(), from.raw(), to.bytes(), to.device());
  } else {
    run<false>(to, from);
  }
}

void add(const Tensor& to, const Tensor& from) { run<true>(to, from); }

void fill_zero(const Tensor& tensor) {
  if (tensor.contiguous()) return fill_zero_bytes(tensor.raw(), tensor.bytes(), tensor.device());
  DCHECK(tensor.rank() == 2 && tensor.stride(1) == 1);
  const int64_t width = bytes_of(tensor.dtype());
  check(cudaMemset2DAsync(tensor.raw(), static_cast<size_t>(tensor.stride(0) * width), 0,
                          static_cast<size_t>(tensor.size(1) * width), static_cast<size_t>(tensor.size(0)),
                          stream(tensor.device())),
        "fill with zeros");
}

}  // namespace ssm::cuda
