// y = x W^T + b for up to 16 rows on a GPU: decoding, which is bound by reading each weight once. A warp takes tiles of
// 8 outputs and a slice of the columns, keeps several 16-byte loads a lane in flight and multiplies on the tensor cores
// with the weight as the operand that streams; f32, which tensor cores would round, multiplies on the FMA pipe. Slices are
// summed in a fixed order through shared memory. README.md has the measurements behind the constants.
#include <algorithm>

#include "core/cuda_kernel.cuh"
#include "ops/linear/few_rows.h"

namespace ssm::cuda {
namespace {

constexpr int kOutputs = 8;    // of a tile: the n of mma.m16n8k16
constexpr int kColumns = 32;   // of a step: four lanes of 16 bytes a weight row, two mma
constexpr int kMostThreads = 512;
constexpr int kMostRows = 16;  // of a block in the register form: the m of mma.m16n8k16

struct Product {
  const void* x;       // (t, k)
  const void* weight;  // (outputs, k)
  const void* bias;    // (outputs) or null
  void* y;             // (t, outputs)
  int64_t x_stride, weight_stride, y_stride;
  int t, k, outputs;
  bool bias_f32;
};

// Eight neighbours; those from column k on are zero. Rows that do not begin on 16 bytes are read one by one.
template <bool kAligned, class T>
__device__ __forceinline__ uint4 load_eight(const T* row, int column, int k) {
  uint4 result = make_uint4(0, 0, 0, 0);
  if constexpr (kAligned) {
    if (column < k)
      asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(result.x), "=r"(result.y), "=r"(result.z), "=r"(result.w)
                   : "l"(row + column));
  } else {
    Pack<T, 8> pack = *reinterpret_cast<Pack<T, 8>*>(&result);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (column + i < k) pack.value[i] = row[column + i];
    result = *reinterpret_cast<uint4*>(&pack);
  }
  return result;
}

// The same for x, which the kernel before may have written: through the coherent path.
template <bool kAligned, class T>
__device__ __forceinline__ uint4 load_x(const T* row, int column, int k, bool present) {
  uint4 result = make_uint4(0, 0, 0, 0);
  if (!present) return result;
  if constexpr (kAligned) {
    if (column < k) result = *reinterpret_cast<const uint4*>(row + column);
  } else {
    result = load_eight<false>(row, column, k);
  }
  return result;
}

// d += a b, a (16, 16) rows of x, b (16, 8) columns of W^T.
template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <class Out>
__device__ __forceinline__ float bias_at(const Product& p, int output) {
  if (!p.bias) return 0;
  return p.bias_f32 ? static_cast<const float*>(p.bias)[output] : to_float(static_cast<const Out*>(p.bias)[output]);
}

// Adds the slices of a block in order, adds the bias and stores. partial is (slices, rows, outputs of the block).
template <class Out>
__device__ __forceinline__ void add_slices_and_store(const Product& p, const float* partial, int rows,
                                                     int block_outputs) {
  __syncthreads();  // all slices are written
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * 32 + threadIdx.x;
  const int threads = 32 * blockDim.y * blockDim.z, first = blockIdx.x * block_outputs;
  for (int i = thread; i < p.t * block_outputs; i += threads) {
    const int row = i / block_outputs, output = i % block_outputs;
    if (first + output >= p.outputs) continue;
    float sum = 0;
    for (int slice = 0; slice < blockDim.y; ++slice) sum += partial[(slice * rows + row) * block_outputs + output];
    sum += bias_at<Out>(p, first + output);
    static_cast<Out*>(p.y)[row * p.y_stride + first + output] = from_float<Out>(sum);
  }
}

// The part of a product that block row z of the grid works on: kMostRows rows of x.
template <class T, class Out>
__device__ __forceinline__ Product rows_of_block(const Product& whole) {
  Product p = whole;
  const int first = blockIdx.y * kMostRows;
  p.x = static_cast<const T*>(p.x) + first * p.x_stride;
  p.y = static_cast<Out*>(p.y) + first * p.y_stride;
  p.t = min(kMostRows, p.t - first);
  return p;
}

// The register form, for any number of columns. Block (32, slices of the columns, groups of outputs), grid (outputs,
// rows). kTiles tiles a warp; kRing steps in flight; kUpper: more than 8 rows.
template <class T, class Out, int kTiles, int kRing, bool kUpper, bool kAligned>
__global__ void __launch_bounds__(kMostThreads) few_rows_tensor_kernel(const __grid_constant__ Product whole) {
  const Product p = rows_of_block<T, Out>(whole);
  extern __shared__ float partial[];
  const int lane_row = threadIdx.x / 4, lane_column = threadIdx.x % 4 * 8;
  const int slices = blockDim.y, slice = threadIdx.y;
  const int steps = (p.k + kColumns - 1) / kColumns;
  const int begin = steps * slice / slices, end = steps * (slice + 1) / slices;
  const int block_outputs = blockDim.z * kTiles * kOutputs, group = threadIdx.z * kTiles * kOutputs;

  const T* weight[kTiles];  // rows past the last are read again and dropped
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int output = min(static_cast<int>(blockIdx.x) * block_outputs + group + tile * kOutputs + lane_row, p.outputs - 1);
    weight[tile] = static_cast<const T*>(p.weight) + output * p.weight_stride;
  }
  const T* lower_x = static_cast<const T*>(p.x) + lane_row * p.x_stride;
  const T* upper_x = lower_x + 8 * p.x_stride;
  const bool lower = lane_row < p.t, upper = kUpper && lane_row + 8 < p.t;

  // Weights before the wait: they do not depend on the kernel before.
  uint4 w[kRing][kTiles], x[kRing][kUpper ? 2 : 1];
  const auto load_weights = [&](int u, int step) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      w[u][tile] = load_eight<kAligned>(weight[tile], step * kColumns + lane_column, step < end ? p.k : 0);
  };
  const auto load_rows = [&](int u, int step) {
    const int column = step * kColumns + lane_column, k = step < end ? p.k : 0;
    x[u][0] = load_x<kAligned>(lower_x, column, k, lower);
    if constexpr (kUpper) x[u][1] = load_x<kAligned>(upper_x, column, k, upper);
  };
  let_next_kernel_start();
#pragma unroll
  for (int u = 0; u < kRing; ++u) load_weights(u, begin + u);
  wait_for_previous_kernels();
#pragma unroll
  for (int u = 0; u < kRing; ++u) load_rows(u, begin + u);

  float sum[kTiles][2][4] = {};  // two chains a tile hide half of the latency of mma
  for (int step = begin; step < end; step += kRing) {
#pragma unroll
    for (int u = 0; u < kRing; ++u) {
      const uint4 a = x[u][0], b = kUpper ? x[u][kUpper ? 1 : 0] : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        multiply<T>(sum[tile][0], a.x, b.x, a.y, b.y, w[u][tile].x, w[u][tile].y);
        multiply<T>(sum[tile][1], a.z, b.z, a.w, b.w, w[u][tile].z, w[u][tile].w);
      }
      if (step + u + kRing < end) {
        load_weights(u, step + u + kRing);
        load_rows(u, step + u + kRing);
      } else {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) w[u][tile] = make_uint4(0, 0, 0, 0);
      }
    }
  }

  constexpr int kRows = kUpper ? 16 : 8;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    float* to = partial + (threadIdx.y * kRows + lane_row) * block_outputs + group + tile * kOutputs + threadIdx.x % 4 * 2;
    to[0] = sum[tile][0][0] + sum[tile][1][0];
    to[1] = sum[tile][0][1] + sum[tile][1][1];
    if constexpr (kUpper) {
      to[8 * block_outputs] = sum[tile][0][2] + sum[tile][1][2];
      to[8 * block_outputs + 1] = sum[tile][0][3] + sum[tile][1][3];
    }
  }
  add_slices_and_store<Out>(p, partial, kRows, block_outputs);
}

// The streaming form, for weights of many columns: a producer warp copies tiles of rows into a ring in shared memory
// with the bulk copy engine, eight warps multiply. The ring takes no registers and few threads, so a kernel launched early
// fills its own while the one in front still multiplies: memory is busy across the boundary.
constexpr int kStageColumns = 256;  // a step of 32 for each of the eight warps
constexpr int kStageWarps = kStageColumns / kColumns;
constexpr int kPitch = kStageColumns * 2 + 64;  // bytes a row: neighbouring rows fall on different halves of the banks
constexpr int kRingRows = 128;  // 74 KB: three kernels share a multiprocessor
constexpr int kMostStages = kRingRows / kOutputs;
constexpr int kStreamThreads = (kStageWarps + 1) * 32;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ void make_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

template <int kTiles, int kRows>
constexpr size_t stream_shared_bytes() {
  return 2 * kMostStages * sizeof(uint64_t) + kRingRows * kPitch +
         2 * kStageWarps * kRows * kTiles * kOutputs * sizeof(float);
}

// Items are groups of kTiles * 8 outputs, block b takes b, b + blocks, ... kRows: rows of x, rounded up to 8, 16, 32, 64.
template <class T, class Out, int kTiles, int kRows>
__global__ void __launch_bounds__(kStreamThreads) few_rows_stream_kernel(const __grid_constant__ Product p) {
  constexpr int kStages = kMostStages / kTiles, kItem = kTiles * kOutputs, kParts = kRows / 8;
  extern __shared__ __align__(128) unsigned char memory[];
  unsigned char* ring = memory;
  float* partial = reinterpret_cast<float*>(ring + kRingRows * kPitch);
  uint64_t* full = reinterpret_cast<uint64_t*>(partial + 2 * kStageWarps * kRows * kItem);
  uint64_t* empty = full + kMostStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int items = (p.outputs + kItem - 1) / kItem, steps = p.k / kStageColumns;
  let_next_kernel_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      make_barrier(full + i, 1);
      make_barrier(empty + i, kStageWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the copy engine sees them made
  }
  __syncthreads();

  if (warp == kStageWarps) {  // the producer reads weights alone, so it waits for no other kernel
    int stage = 0;
    uint32_t parity = 1;  // a fresh barrier's phase before the first counts as complete
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      for (int step = 0; step < steps; ++step) {
        wait(empty + stage, parity);
        if (lane == 0) arrive_expecting(full + stage, kItem * kStageColumns * sizeof(T));
        __syncwarp();
        if (lane < kItem) {
          const int output = min(item * kItem + lane, p.outputs - 1);  // rows past the last are read again and dropped
          copy_bulk(ring + (stage * kItem + lane) * kPitch,
                    static_cast<const T*>(p.weight) + output * p.weight_stride + step * kStageColumns,
                    kStageColumns * sizeof(T), full + stage);
        }
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    }
    return;
  }

  const int lane_row = lane / 4, lane_column = lane % 4 * 8;
  const T* x_row = static_cast<const T*>(p.x) + lane_row * p.x_stride + warp * kColumns + lane_column;
  const auto load_rows = [&](uint4 (&x)[kParts], int step) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      x[part] = make_uint4(0, 0, 0, 0);
      if (lane_row + part * 8 < p.t)
        x[part] = *reinterpret_cast<const uint4*>(x_row + part * 8 * p.x_stride + step * kStageColumns);
    }
  };
  wait_for_previous_kernels();
  uint4 x[kParts], next_x[kParts];
  load_rows(x, 0);
  int stage = 0, half = 0;
  uint32_t parity = 0;
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    float sum[kTiles][(kParts + 1) / 2][4] = {};
    for (int step = 0; step < steps; ++step) {
      load_rows(next_x, step + 1 < steps ? step + 1 : 0);
      wait(full + stage, parity);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint4 w = *reinterpret_cast<const uint4*>(ring + (stage * kItem + tile * kOutputs + lane_row) * kPitch +
                                                        (warp * kColumns + lane_column) * 2);
#pragma unroll
        for (int part = 0; part < kParts; part += 2) {
          const uint4 a = x[part], b = kParts > 1 ? x[kParts > 1 ? part + 1 : 0] : make_uint4(0, 0, 0, 0);
          multiply<T>(sum[tile][part / 2], a.x, b.x, a.y, b.y, w.x, w.y);
          multiply<T>(sum[tile][part / 2], a.z, b.z, a.w, b.w, w.z, w.w);
        }
      }
      __syncwarp();
      if (lane == 0) arrive(empty + stage);
      if (++stage == kStages) stage = 0, parity ^= 1;
#pragma unroll
      for (int part = 0; part < kParts; ++part) x[part] = next_x[part];
    }
    // The eight warps' sums, in order. Two buffers in turn: one barrier an item is enough.
    float* mine = partial + half * kStageWarps * kRows * kItem;
    half ^= 1;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float* to = mine + (warp * kRows + part * 8 + lane_row) * kItem + tile * kOutputs + lane % 4 * 2;
        to[0] = sum[tile][part / 2][part % 2 * 2];
        to[1] = sum[tile][part / 2][part % 2 * 2 + 1];
      }
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kStageWarps * 32) : "memory");
    for (int i = threadIdx.x; i < p.t * kItem; i += kStageWarps * 32) {
      float total = 0;
#pragma unroll
      for (int slice = 0; slice < kStageWarps; ++slice) total += mine[slice * kRows * kItem + i];
      const int row = i / kItem, output = item * kItem + i % kItem;
      if (output >= p.outputs) continue;
      total += bias_at<Out>(p, output);
      static_cast<Out*>(p.y)[row * p.y_stride + output] = from_float<Out>(total);
    }
  }
}

// f32: lanes side by side along the columns, kOut weight rows a warp, kRows rows of x.
template <int kRows, int kOut, bool kAligned>
__global__ void __launch_bounds__(256) few_rows_f32_kernel(const __grid_constant__ Product whole) {
  const Product p = rows_of_block<float, float>(whole);
  extern __shared__ float partial[];
  constexpr int kStep = 128;  // columns: 32 lanes of 16 bytes
  const int slices = blockDim.y, slice = threadIdx.y, lane = threadIdx.x;
  const int steps = (p.k + kStep - 1) / kStep, begin = steps * slice / slices, end = steps * (slice + 1) / slices;
  const int block_outputs = blockDim.z * kOut, group = threadIdx.z * kOut;
  const auto load = [&](const float* row, int column) {
    float4 v = make_float4(0, 0, 0, 0);
    if (kAligned) {
      if (column < p.k) v = *reinterpret_cast<const float4*>(row + column);
    } else {
      if (column < p.k) v.x = row[column];
      if (column + 1 < p.k) v.y = row[column + 1];
      if (column + 2 < p.k) v.z = row[column + 2];
      if (column + 3 < p.k) v.w = row[column + 3];
    }
    return v;
  };
  const float* weight[kOut];
#pragma unroll
  for (int o = 0; o < kOut; ++o)
    weight[o] = static_cast<const float*>(p.weight) +
                min(static_cast<int>(blockIdx.x) * block_outputs + group + o, p.outputs - 1) * p.weight_stride;

  let_next_kernel_start();
  wait_for_previous_kernels();
  float sum[kOut][kRows] = {};
#pragma unroll 2
  for (int step = begin; step < end; ++step) {
    const int column = step * kStep + lane * 4;
    float4 w[kOut];
#pragma unroll
    for (int o = 0; o < kOut; ++o) w[o] = load(weight[o], column);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= p.t) break;
      const float4 x = load(static_cast<const float*>(p.x) + row * p.x_stride, column);
#pragma unroll
      for (int o = 0; o < kOut; ++o) {
        float& to = sum[o][row];
        to = fmaf(w[o].w, x.w, fmaf(w[o].z, x.z, fmaf(w[o].y, x.y, fmaf(w[o].x, x.x, to))));
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOut; ++o) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float total = sum[o][row];
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(0xffffffffu, total, distance);
      if (lane == 0) partial[(slice * kRows + row) * block_outputs + group + o] = total;
    }
  }
  add_slices_and_store<float>(p, partial, kRows, block_outputs);
}

// How a product is laid over the GPU.
struct Geometry {
  int tiles, ring;     // template arguments of the tensor kernel
  int slices, groups;  // warps of a block along the columns and along the outputs
};

using Kernel = void (*)(Product);

template <class T, class Out, bool kUpper>
Kernel tensor_kernel(const Geometry& geometry, bool is_aligned) {
  if (!is_aligned) return few_rows_tensor_kernel<T, Out, 1, 2, kUpper, false>;
  if (geometry.tiles == 1 && geometry.ring == 2) return few_rows_tensor_kernel<T, Out, 1, 2, kUpper, true>;
  if (geometry.tiles == 1) return few_rows_tensor_kernel<T, Out, 1, 4, kUpper, true>;
  return few_rows_tensor_kernel<T, Out, 2, 2, kUpper, true>;
}

Kernel f32_kernel(int64_t t, bool is_aligned) {
  const auto pick = [&]<int kRows, int kOut>() -> Kernel {
    return is_aligned ? few_rows_f32_kernel<kRows, kOut, true> : few_rows_f32_kernel<kRows, kOut, false>;
  };
  if (t == 1) return pick.operator()<1, 4>();
  if (t <= 4) return pick.operator()<4, 4>();
  if (t <= 8) return pick.operator()<8, 4>();
  return pick.operator()<16, 4>();
}

Geometry geometry_of(const Product& p) {
  const int steps = (p.k + kColumns - 1) / kColumns;
  Geometry g{.tiles = 1, .ring = 4, .slices = 1, .groups = 1};
  while (g.slices < 16 && g.slices * 4 <= steps) g.slices *= 2;
  return g;
}

}  // namespace

void few_rows(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y, Stream stream) {
  DCHECK(x.size(0) <= kFewRows && x.dtype() == weight.dtype());
  Product p{.x = x.raw(),
            .weight = weight.raw(),
            .bias = bias ? bias.raw() : nullptr,
            .y = y.raw(),
            .x_stride = x.stride(0),
            .weight_stride = weight.stride(0),
            .y_stride = y.stride(0),
            .t = static_cast<int>(x.size(0)),
            .k = static_cast<int>(x.size(1)),
            .outputs = static_cast<int>(weight.size(0)),
            .bias_f32 = bias && bias.dtype() == DType::f32};
  if (p.t == 0 || p.outputs == 0) return;
  Geometry geometry = geometry_of(p);
  LaunchOptions options;
  // A recorded graph is decoding, whose weights nobody writes: only there may a kernel read them before the one in
  // front of it has ended.
  options.early = recording(y.device());
  const auto start = [&](Kernel kernel, int outputs, int rows) {
    options.shared = sizeof(float) * static_cast<size_t>(geometry.slices) * static_cast<size_t>(rows * outputs);
    launch("linear", kernel, dim3(static_cast<unsigned>(divide_up(p.outputs, outputs)), static_cast<unsigned>(divide_up(p.t, kMostRows))),
           dim3(32, static_cast<unsigned>(geometry.slices), static_cast<unsigned>(geometry.groups)), options, stream, p);
  };
  if (x.dtype() == DType::f32) {
    const bool is_aligned = aligned(x, 16) && aligned(weight, 16) && p.k % 4 == 0;
    geometry.slices = static_cast<int>(std::clamp<int64_t>(divide_up(p.k, 512), 1, 8));
    geometry.groups = 8 / geometry.slices;
    const int rows = p.t == 1 ? 1 : p.t <= 4 ? 4 : p.t <= 8 ? 8 : 16;
    return start(f32_kernel(p.t, is_aligned), 4 * geometry.groups, rows);
  }
  const bool is_aligned = aligned(x, 16) && aligned(weight, 16) && p.k % 8 == 0, upper = p.t > 8;
  if (!is_aligned) geometry.tiles = 1;
  const auto pick = [&]<class T, class Out>() {
    start(upper ? tensor_kernel<T, Out, true>(geometry, is_aligned) : tensor_kernel<T, Out, false>(geometry, is_aligned),
          geometry.groups * geometry.tiles * kOutputs, upper ? 16 : 8);
  };
  const bool to_f32 = y.dtype() == DType::f32;
  if (x.dtype() == DType::bf16)
    to_f32 ? pick.operator()<bf16, float>() : pick.operator()<bf16, bf16>();
  else
    to_f32 ? pick.operator()<f16, float>() : pick.operator()<f16, f16>();
}

}  // namespace ssm::cuda
