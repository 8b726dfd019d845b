// y = x W^T + b for up to 16 rows on a GPU (64 where outputs are few): decoding, which is bound by reading each weight
// once. A warp takes tiles of 8 outputs and a slice of the columns, keeps several 16-byte loads a lane in flight and
// multiplies on the tensor cores with the weight as the operand that streams; f32, which tensor cores would round,
// multiplies on the FMA pipe. Slices are summed in a fixed order through shared memory. README.md has the measurements
// behind the constants.
#include <algorithm>
#include <bit>

#include "core/cuda_kernel.cuh"
#include "ops/linear/few_rows.h"
#include "ops/tensor_core.cuh"

namespace ssm::cuda {
namespace {

constexpr int kOutputs = 8;   // of a tile: the n of mma.m16n8k16
constexpr int kColumns = 32;  // of a step: four lanes of 16 bytes a weight row, two mma
constexpr int kMostThreads = 512;
constexpr int64_t kFewOutputs = 256;
constexpr int kMostRows = 16;  // of a block: the m of mma.m16n8k16

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

// Block (32, slices of the columns, groups of outputs), grid (outputs,
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
    const int output =
        min(static_cast<int>(blockIdx.x) * block_outputs + group + tile * kOutputs + lane_row, p.outputs - 1);
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
        multiply_add<T>(sum[tile][0], a.x, b.x, a.y, b.y, w[u][tile].x, w[u][tile].y);
        multiply_add<T>(sum[tile][1], a.z, b.z, a.w, b.w, w[u][tile].z, w[u][tile].w);
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
    float* to =
        partial + (threadIdx.y * kRows + lane_row) * block_outputs + group + tile * kOutputs + threadIdx.x % 4 * 2;
    to[0] = sum[tile][0][0] + sum[tile][1][0];
    to[1] = sum[tile][0][1] + sum[tile][1][1];
    if constexpr (kUpper) {
      to[8 * block_outputs] = sum[tile][0][2] + sum[tile][1][2];
      to[8 * block_outputs + 1] = sum[tile][0][3] + sum[tile][1][3];
    }
  }
  add_slices_and_store<Out>(p, partial, kRows, block_outputs);
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

using Kernel = void (*)(Product);

void start(Kernel kernel, dim3 grid, dim3 block, size_t shared, const Product& p, const Tensor& y, Stream stream) {
  // A recorded graph is decoding, whose weights nobody writes: only there may a kernel read them before the one in
  // front of it has ended.
  launch("linear", kernel, grid, block, {.shared = shared, .early = recording(y.device())}, stream, p);
}

// How a product is laid over the GPU, by measurement (README.md).
struct Geometry {
  int tiles, ring, slices;
};

Geometry geometry_of(const Product& p) {
  const int steps = (p.k + kColumns - 1) / kColumns, tiles = (p.outputs + kOutputs - 1) / kOutputs;
  const int wanted = tiles >= 1024 ? 4 : tiles >= 300 ? 8 : 16;
  const int slices = std::min(wanted, static_cast<int>(std::bit_floor(static_cast<unsigned>(steps))));
  const int each = (steps + slices - 1) / slices;
  // Two tiles a warp where one would take more blocks than are resident at once.
  if (tiles > 1056) return {2, 2, slices};
  // Few warps keep much in flight each; many leave each other registers.
  if (each > 4) return {1, tiles * slices <= 528 ? 8 : 2, slices};
  return {1, each <= 2 ? 2 : 4, slices};
}

template <class T, class Out, bool kUpper>
void start_tensor(const Product& p, bool is_aligned, const Tensor& y, Stream stream) {
  Geometry g = geometry_of(p);
  if (!is_aligned) g.tiles = 1;
  const Kernel kernel = !is_aligned    ? few_rows_tensor_kernel<T, Out, 1, 2, kUpper, false>
                        : g.tiles == 2 ? few_rows_tensor_kernel<T, Out, 2, 2, kUpper, true>
                        : g.ring == 2  ? few_rows_tensor_kernel<T, Out, 1, 2, kUpper, true>
                        : g.ring == 4  ? few_rows_tensor_kernel<T, Out, 1, 4, kUpper, true>
                                       : few_rows_tensor_kernel<T, Out, 1, 8, kUpper, true>;
  const int outputs = g.tiles * kOutputs;
  const dim3 grid(static_cast<unsigned>(divide_up(p.outputs, outputs)),
                  static_cast<unsigned>(divide_up(p.t, kMostRows)));
  start(kernel, grid, dim3(32, static_cast<unsigned>(g.slices)),
        sizeof(float) * static_cast<size_t>(g.slices * outputs * (kUpper ? 16 : 8)), p, y, stream);
}

template <class T, class Out>
void start_tensor(const Product& p, bool is_aligned, const Tensor& y, Stream stream) {
  p.t > 8 ? start_tensor<T, Out, true>(p, is_aligned, y, stream)
          : start_tensor<T, Out, false>(p, is_aligned, y, stream);
}

// f32: kRows rows of x at most.
template <int kRows>
void start_f32(const Product& p, bool is_aligned, const Tensor& y, Stream stream) {
  constexpr int kOut = 4, kWarps = 8;
  const int slices = static_cast<int>(std::clamp<int64_t>(std::bit_floor(static_cast<unsigned>(p.k / 256)), 1, kWarps));
  const int groups = kWarps / slices, outputs = groups * kOut;
  start(is_aligned ? few_rows_f32_kernel<kRows, kOut, true> : few_rows_f32_kernel<kRows, kOut, false>,
        dim3(static_cast<unsigned>(divide_up(p.outputs, outputs)), 1),
        dim3(32, static_cast<unsigned>(slices), static_cast<unsigned>(groups)),
        sizeof(float) * static_cast<size_t>(slices * kRows * outputs), p, y, stream);
}

}  // namespace

bool few_rows_win(const Tensor& x, const Tensor& weight) {
  const int64_t t = x.size(0), outputs = weight.size(0);
  if (t == 0 || outputs == 0 || x.size(1) == 0 || x.dtype() != weight.dtype() || outputs > (int64_t{1} << 24))
    return false;
  // Beyond 16 rows the library is faster but where outputs are too few for its blocks. The weight is read again for
  // every 16 rows, from the L2 cache.
  return t <= kMostRows || (x.dtype() != DType::f32 && t <= 64 && outputs <= kFewOutputs);
}

void few_rows(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y, Stream stream) {
  const Product p{.x = x.raw(),
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
  const int64_t neighbours = 16 / bytes_of(x.dtype());
  const bool is_aligned = aligned(x, 16) && aligned(weight, 16) && p.k % neighbours == 0;
  if (x.dtype() == DType::f32) {
    if (p.t == 1) return start_f32<1>(p, is_aligned, y, stream);
    if (p.t <= 4) return start_f32<4>(p, is_aligned, y, stream);
    return p.t <= 8 ? start_f32<8>(p, is_aligned, y, stream) : start_f32<16>(p, is_aligned, y, stream);
  }
  const bool to_f32 = y.dtype() == DType::f32;
  if (x.dtype() == DType::bf16)
    to_f32 ? start_tensor<bf16, float>(p, is_aligned, y, stream) : start_tensor<bf16, bf16>(p, is_aligned, y, stream);
  else
    to_f32 ? start_tensor<f16, float>(p, is_aligned, y, stream) : start_tensor<f16, f16>(p, is_aligned, y, stream);
}

}  // namespace ssm::cuda
