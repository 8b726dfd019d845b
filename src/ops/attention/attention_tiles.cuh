// Tiles of rows in shared memory and their products on tensor cores, for attention in bf16 and f16. Rows are kP
// channels in chunks of 16 bytes, placed so that the eight rows of an ldmatrix lie in different banks.
#pragma once

#include "ops/attention/attention_cuda.cuh"
#include "ops/sums.cuh"
#include "ops/tensor_core.cuh"

namespace ssm::cuda {
namespace {

constexpr int kTileThreads = 128, kTileWarps = 4, kChunk = 8;  // elements of 16 bytes
constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Where a chunk of a row lies. Rows of 64 bytes share their 128 with a neighbour.
template <int kP>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  const int turn = kP >= 64 ? row & 7 : (row >> 1) & 3;
  return row * kP + (chunk ^ turn) * kChunk;
}

// kRows rows from global memory, queued; zeros behind `count` rows and p channels.
template <int kP, int kRows, class T>
__device__ __forceinline__ void queue_tile(T* to, const T* from, int64_t stride, int64_t count, int p) {
  constexpr int kChunks = kP / kChunk;
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kTileThreads; ++i) {
    const int at = i * kTileThreads + static_cast<int>(threadIdx.x), row = at / kChunks, chunk = at % kChunks;
    const bool there = row < count && chunk * kChunk < p;
    const T* source = there ? from + row * stride + chunk * kChunk : from;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to + chunk_at<kP>(row, chunk))),
                 "l"(source), "r"(there ? 16 : 0)
                 : "memory");
  }
}
__device__ __forceinline__ void end_queue() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wait_for_queues() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Rows row .. row + 15, channels 16 k .. 16 k + 15 as the left operand.
template <int kP, class T>
__device__ __forceinline__ void load_left(uint32_t (&a)[4], const T* tile, int row, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(tile + chunk_at<kP>(row + (lane & 15), 2 * k + (lane >> 4)))));
}
// The same rows as 16 columns of the right operand, their channels as its rows: b[0], b[1] of the first 8.
template <int kP, class T>
__device__ __forceinline__ void load_right(uint32_t (&b)[4], const T* tile, int row, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
      : "r"(shared_address(tile + chunk_at<kP>(row + (lane & 7) + (lane >> 4) * 8, 2 * k + ((lane >> 3) & 1)))));
}
// The rows as the right operand's rows, 16 channels from 16 n on as its columns.
template <int kP, class T>
__device__ __forceinline__ void load_right_turned(uint32_t (&b)[4], const T* tile, int row, int n) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(shared_address(tile + chunk_at<kP>(row + (lane & 15), 2 * n + (lane >> 4)))));
}

template <class T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  } else {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
}

__device__ __forceinline__ float power_of_2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// A warp's products: kM times 16 rows against kN columns, accumulators as multiply_add() has them.
template <int kM, int kN>
struct Accumulators {
  float of[kM][kN / 8][4];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) of[m][n][i] = 0;
  }
};

// sums = left rows `row`.. of a tile times kN rows of another, over kP channels.
template <class T, int kP, int kM, int kN>
__device__ __forceinline__ void multiply_rows(Accumulators<kM, kN>& sums, const T* left, int row, const T* right) {
  sums.clear();
#pragma unroll
  for (int k = 0; k < kP / 16; ++k) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) load_left<kP>(a[m], left, row + 16 * m, k);
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t b[4];
      load_right<kP>(b, right, 16 * n, k);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add<T>(sums.of[m][2 * n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        multiply_add<T>(sums.of[m][2 * n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

// sums += weights, rounded to T, times the kN rows of a tile.
template <class T, int kP, int kM, int kN>
__device__ __forceinline__ void add_weighted(Accumulators<kM, kP>& sums, const Accumulators<kM, kN>& weights,
                                             const T* tile) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const auto &low = weights.of[m][2 * k], &high = weights.of[m][2 * k + 1];
      a[m][0] = packed<T>(low[0], low[1]);
      a[m][1] = packed<T>(low[2], low[3]);
      a[m][2] = packed<T>(high[0], high[1]);
      a[m][3] = packed<T>(high[2], high[3]);
    }
#pragma unroll
    for (int n = 0; n < kP / 16; ++n) {
      uint32_t b[4];
      load_right_turned<kP>(b, tile, 16 * k, n);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        multiply_add<T>(sums.of[m][2 * n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        multiply_add<T>(sums.of[m][2 * n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

// f(row, column, value) of each accumulator of this lane; `row` from 0 to 16 kM - 1 of the warp's.
template <int kM, int kN, class F>
__device__ __forceinline__ void for_each(Accumulators<kM, kN>& sums, const F& f) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(16 * m + lane / 4 + i / 2 * 8, 8 * n + lane % 4 * 2 + i % 2, sums.of[m][n][i]);
}

// A warp's results times `factor(m, half)` to rows of T, below `count` rows and p channels; kAdd: to what is there.
template <class T, bool kAdd, int kP, int kM, class F>
__device__ __forceinline__ void store_rows(const Accumulators<kM, kP>& sums, T* to, int64_t stride, int row,
                                           int64_t count, int p, const F& factor) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int here = row + 16 * m + lane / 4 + 8 * half;
      if (here >= count) continue;
      const float by = factor(m, half);
#pragma unroll
      for (int n = 0; n < kP / 8; ++n) {
        const int c = 8 * n + lane % 4 * 2;
        if (c >= p) continue;
        T* const place = to + here * stride + c;
        float values[2] = {by * sums.of[m][n][2 * half], by * sums.of[m][n][2 * half + 1]}, before[2];
        if constexpr (kAdd) {
          load_floats(place, before);
          values[0] += before[0], values[1] += before[1];
        }
        store_floats(place, values);
      }
    }
}

}  // namespace
}  // namespace ssm::cuda
