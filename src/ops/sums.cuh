// Sums in a fixed order, for kernels that must give the same bits every time: over a row of threads, and over the
// partial sums that blocks leave behind.
#pragma once

#include <algorithm>

#include "core/cuda_kernel.cuh"

namespace ssm::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum over threadIdx.x, blockDim.x a multiple of 32, for each threadIdx.y. `scratch` holds a float a warp of the
// block; whoever calls twice passes another one the second time, so that one barrier is enough.
__device__ __forceinline__ float row_sum(float value, float* scratch) {
  value = warp_sum(value);
  const unsigned warps = blockDim.x / kWarp;
  if (warps == 1) return value;
  float* mine = scratch + threadIdx.y * warps;
  if (threadIdx.x % kWarp == 0) mine[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < warps; ++warp) sum += mine[warp];
  return sum;
}

// Blocks of a kernel that the whole GPU holds at once.
template <class... Parameters>
int64_t resident_blocks(const char* op, void (*kernel)(Parameters...), dim3 block, size_t shared,
                        const Device& device) {
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, static_cast<int>(block.x * block.y * block.z),
                                                      shared),
        op);
  return int64_t{std::max(each, 1)} * multiprocessors(device);
}

namespace {

constexpr int kSumLanes = 32, kSumParts = 32;

// partial (parts, first_size + second_size): its column sums go to `first` and, behind them, to `second`; either may be
// null. Thread y takes every 32nd part, then the 32 sums are added in order.
__global__ void __launch_bounds__(kSumLanes* kSumParts)
    sum_parts_kernel(const float* partial, int64_t parts, float* first, int64_t first_size, float* second,
                     int64_t second_size) {
  wait_for_previous_kernels();
  __shared__ float sums[kSumParts][kSumLanes];
  const int64_t size = first_size + second_size, i = static_cast<int64_t>(blockIdx.x) * kSumLanes + threadIdx.x;
  float sum = 0;
  if (i < size)
    for (int64_t part = threadIdx.y; part < parts; part += kSumParts) sum += partial[part * size + i];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= size) return;
  for (int y = 1; y < kSumParts; ++y) sum += sums[y][threadIdx.x];
  if (i < first_size) {
    if (first) first[i] = sum;
  } else if (second) {
    second[i - first_size] = sum;
  }
}

inline void sum_parts(const char* op, const Tensor& partial, const Tensor& first, int64_t first_size,
                      const Tensor& second, int64_t second_size, Stream stream) {
  const auto blocks = static_cast<unsigned>(divide_up(first_size + second_size, kSumLanes));
  launch(op, sum_parts_kernel, dim3(blocks), dim3(kSumLanes, kSumParts), LaunchOptions{.early = true}, stream,
         elements<const float>(partial), partial.size(0), elements<float>(first), first_size, elements<float>(second),
         second_size);
}

}  // namespace
}  // namespace ssm::cuda
