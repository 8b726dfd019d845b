// embedding on a GPU. Forward: a block a token. Backward: positions are sorted by id (a stable radix sort, so a row's
// tokens keep their order), the sorted list is cut into chunks of 32, and every run of one id within a chunk has one
// block to sum it; runs that cross chunks leave partial sums, added in order by the block in whose chunk they begin.
// Equations: embedding.h, README.md.
#include <cub/device/device_radix_sort.cuh>

#include "core/cuda_kernel.cuh"
#include "ops/embedding/embedding.h"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChunk = 32;  // positions: a thread's additions in a row, and the tokens it reads ahead of them

// kPack neighbours a thread; 1 where rows are misaligned. An id that is no row gives NaN, which nobody can overlook.
template <class W, class Y, int kPack>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const int64_t* ids, Rows<const W> weight, int64_t vocab, int64_t d, Rows<Y> y) {
  const int64_t t = blockIdx.x, id = ids[t];
  const bool known = 0 <= id && id < vocab;
  for (int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kPack; c < d;
       c += static_cast<int64_t>(gridDim.y) * kThreads * kPack) {
    float value[kPack];
    if (known) {
      load_floats(weight[id] + c, value);
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) value[j] = __int_as_float(0x7fffffff);
    }
    store_floats(y[t] + c, value);
  }
}

__global__ void keys_kernel(const int64_t* ids, uint32_t* keys, int32_t* positions, int64_t count) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t >= count) return;
  keys[t] = static_cast<uint32_t>(ids[t]);
  positions[t] = static_cast<int32_t>(t);
}

// The sorted list and where the sums of runs that cross chunks lie.
struct Sorted {
  const uint32_t* keys;
  const int32_t* positions;
  int64_t count;
  float* partial;  // (chunks, 2, d): of the run that comes from the chunk before, and of the one that goes on behind
};

// blockIdx.x is the chunk. A whole run is added to its row; `from_before` and `goes_on` runs leave partial sums.
template <class Y, int kPack>
__global__ void __launch_bounds__(kThreads)
    sum_runs_kernel(Sorted sorted, Rows<const Y> dy, int64_t d, Rows<float> dweight) {
  const int64_t chunk = blockIdx.x, begin = chunk * kChunk, end = min(begin + kChunk, sorted.count);
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kPack;
  if (c >= d) return;
  float sum[kPack] = {};
  bool from_before = begin > 0 && sorted.keys[begin - 1] == sorted.keys[begin];
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t id = sorted.keys[i];
    float term[kPack];
    load_floats(dy[sorted.positions[i]] + c, term);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum[j] += term[j];
    const bool last = i + 1 == sorted.count || sorted.keys[i + 1] != id;
    if (!last && i + 1 < end) continue;
    float* to = dweight[id] + c;
    if (from_before) {
      to = sorted.partial + 2 * chunk * d + c;
    } else if (!last) {
      to = sorted.partial + (2 * chunk + 1) * d + c;
    } else {
      float before[kPack];
      load_floats(to, before);
#pragma unroll
      for (int j = 0; j < kPack; ++j) sum[j] += before[j];
    }
    store_floats(to, sum);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum[j] = 0;
    from_before = false;
  }
}

// The runs that begin in chunk blockIdx.x and go on behind it.
template <int kPack>
__global__ void __launch_bounds__(kThreads) join_runs_kernel(Sorted sorted, int64_t d, Rows<float> dweight) {
  const int64_t chunk = blockIdx.x, begin = chunk * kChunk, next = begin + kChunk;
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kPack;
  if (c >= d || next >= sorted.count) return;
  const uint32_t id = sorted.keys[next - 1];
  const bool from_before = begin > 0 && sorted.keys[begin - 1] == id;
  if (sorted.keys[next] != id || from_before) return;
  float sum[kPack], term[kPack];
  load_floats(dweight[id] + c, sum);
  load_floats(sorted.partial + (2 * chunk + 1) * d + c, term);
#pragma unroll
  for (int j = 0; j < kPack; ++j) sum[j] += term[j];
  // The run's last chunk, first: then the sums can be read ahead of the additions.
  int64_t chunks = 1;
  while (next + chunks * kChunk < sorted.count && sorted.keys[next + chunks * kChunk - 1] == id &&
         sorted.keys[next + chunks * kChunk] == id)
    ++chunks;
#pragma unroll 8
  for (int64_t i = 1; i <= chunks; ++i) {
    load_floats(sorted.partial + 2 * (chunk + i) * d + c, term);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum[j] += term[j];
  }
  store_floats(dweight[id] + c, sum);
}

template <class W, class Y>
void forward(const EmbeddingForward& args, Stream stream) {
  const auto weight = rows<const W>(args.weight);
  const auto y = rows<Y>(args.y);
  const int64_t t = args.ids.count(), vocab = args.weight.size(0), d = args.weight.size(1);
  const auto* ids = elements<const int64_t>(args.ids);
  constexpr int kPack = 8;
  const auto packed = [](const Tensor& tensor) {
    return aligned(tensor, std::min<int64_t>(16, 8 * bytes_of(tensor.dtype())));
  };
  const bool wide = d % kPack == 0 && packed(args.weight) && packed(args.y);
  // One token's row is shared by blocks; a million tokens have enough of their own.
  const int64_t across = std::min<int64_t>(divide_up(d, kThreads * (wide ? kPack : 1)), 65535);
  const dim3 grid(static_cast<unsigned>(t), static_cast<unsigned>(across));
  launch("embedding", wide ? forward_kernel<W, Y, kPack> : forward_kernel<W, Y, 1>, grid, kThreads, stream, ids, weight,
         vocab, d, y);
}

template <class Y>
void backward(const EmbeddingBackward& args, Stream stream) {
  constexpr const char* kName = "embedding backward";
  if (!args.add) args.dweight.fill_zero();
  const int64_t count = args.ids.count(), d = args.dy.size(1), vocab = args.dweight.size(0);
  if (count == 0) return;
  require(count < (int64_t{1} << 31), "embedding: ", count, " tokens in one call; on a GPU at most 2^31 - 1");
  const Device& device = args.dy.device();
  const auto scratch = [&](int64_t size) { return Tensor::empty({size}, DType::i32, device); };
  const Tensor keys = scratch(count), sorted_keys = scratch(count), positions = scratch(count),
               sorted_positions = scratch(count);
  const auto as_keys = [](const Tensor& tensor) { return reinterpret_cast<uint32_t*>(elements<int32_t>(tensor)); };
  launch(kName, keys_kernel, dim3(static_cast<unsigned>(divide_up(count, 256))), 256, stream,
         elements<const int64_t>(args.ids), as_keys(keys), elements<int32_t>(positions), count);
  int bits = 1;
  while (bits < 32 && (int64_t{1} << bits) < vocab) ++bits;
  size_t bytes = 0;
  const auto sort = [&](void* memory) {
    check(cub::DeviceRadixSort::SortPairs(memory, bytes, as_keys(keys), as_keys(sorted_keys),
                                          elements<int32_t>(positions), elements<int32_t>(sorted_positions),
                                          static_cast<int>(count), 0, bits, stream),
          kName);
  };
  sort(nullptr);  // how much memory
  const Tensor memory = scratch(static_cast<int64_t>(bytes) / 4 + 1);
  sort(memory.raw());

  const int64_t chunks = divide_up(count, kChunk);
  const Tensor partial = Tensor::empty({chunks, 2, d}, DType::f32, device);
  const Sorted sorted{.keys = as_keys(sorted_keys),
                      .positions = elements<int32_t>(sorted_positions),
                      .count = count,
                      .partial = elements<float>(partial)};
  const auto dy = rows<const Y>(args.dy);
  const auto dweight = rows<float>(args.dweight);
  constexpr int kPack = 4;
  const bool wide = d % kPack == 0 && aligned(args.dy, kPack * sizeof(Y)) && aligned(args.dweight, 16);
  const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(divide_up(d, kThreads * (wide ? kPack : 1))));
  launch(kName, wide ? sum_runs_kernel<Y, kPack> : sum_runs_kernel<Y, 1>, grid, kThreads, stream, sorted, dy, d,
         dweight);
  launch(kName, wide ? join_runs_kernel<kPack> : join_runs_kernel<1>, grid, kThreads, stream, sorted, d, dweight);
}

}  // namespace

void embedding_forward(const EmbeddingForward& args, Stream stream) {
  with_element(args.weight.dtype(), "embedding", [&]<class W>(W) {
    if (args.y.dtype() == args.weight.dtype())
      forward<W, W>(args, stream);
    else
      forward<W, float>(args, stream);
  });
}

void embedding_backward(const EmbeddingBackward& args, Stream stream) {
  with_element(args.dy.dtype(), "embedding", [&]<class Y>(Y) { backward<Y>(args, stream); });
}

}  // namespace ssm::cuda
