// Tiles in shared memory and products of warpgroups (wgmma, compute capability 9.0 alone), for attention in bf16 and
// f16. A warpgroup is 128 threads that multiply 64 rows at once; warp w of it holds rows 16 w .. 16 w + 15 as
// multiply_add() has them (tensor_core.cuh). Rows of a tile are kP channels in parts of 64, a part's rows 128 bytes
// apart, their chunks of 16 bytes placed as the tensor cores' 128-byte swizzle reads them.
#pragma once

#include "ops/attention/attention_tiles.cuh"

namespace ssm::cuda {
namespace {

constexpr int kGroupThreads = 128, kGroupRows = 64, kPart = 64;

template <class T>
struct TypeName {
  static constexpr char text[] = "bf16";
};
template <>
struct TypeName<f16> {
  static constexpr char text[] = "f16";
};

// The same in all lanes, which the compiler cannot know of threadIdx.x / 128: products must not stand on a branch that
// may divide a warp.
__device__ __forceinline__ int warpgroup() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
}

// kRows rows from global memory, queued by kThreads threads; zeros behind `count` rows and p channels. On 1024 bytes.
template <int kP, int kRows, int kThreads, class T>
__device__ __forceinline__ void queue_rows_tile(T* to, const T* from, int64_t stride, int64_t count, int p) {
  constexpr int kChunks = kP / kChunk, kAll = kRows * kChunks;
#pragma unroll
  for (int i = 0; i < (kAll + kThreads - 1) / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), row = at / kChunks, chunk = at % kChunks;
    if (kAll % kThreads != 0 && at >= kAll) break;
    const bool there = row < count && chunk * kChunk < p;
    const T* source = there ? from + row * stride + chunk * kChunk : from;
    T* const place = to + chunk / 8 * kRows * kPart + row * kPart + ((chunk % 8) ^ (row & 7)) * kChunk;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(place)), "l"(source),
                 "r"(there ? 16 : 0)
                 : "memory");
  }
}

// Descriptors of operands in shared memory: address, strides in 16 bytes, the swizzle of 128 bytes.
// Rows row .. of a tile of kRows, channels 16 k .. 16 k + 15 summed over.
template <int kRows, class T>
__device__ __forceinline__ uint64_t rows_operand(const T* tile, int row, int k) {
  const uint32_t address = shared_address(tile + k / 4 * kRows * kPart + row * kPart + k % 4 * 16);
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (address >> 4 & 0x3fff);
}
// Rows 16 k .. 16 k + 15 of a tile of kRows summed over, all channels its columns.
template <int kRows, class T>
__device__ __forceinline__ uint64_t turned_operand(const T* tile, int k) {
  const uint32_t address = shared_address(tile + k * 16 * kPart);
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{kRows * 128 / 16} << 16 | (address >> 4 & 0x3fff);
}

// d[n] .. d[n + 7], which an instruction both reads and writes.
#define SSM_FOUR_SUMS(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SSM_SUMS(n)                                                                                         \
  SSM_FOUR_SUMS(n), SSM_FOUR_SUMS(n + 1), SSM_FOUR_SUMS(n + 2), SSM_FOUR_SUMS(n + 3), SSM_FOUR_SUMS(n + 4), \
      SSM_FOUR_SUMS(n + 5), SSM_FOUR_SUMS(n + 6), SSM_FOUR_SUMS(n + 7)

// sums = or += a b, of 16 summed indices, queued: a 64 rows in shared memory or registers.
template <class T, bool kTurned>
__device__ __forceinline__ void queue_product(Accumulators<1, 64>& sums, uint64_t a, uint64_t b, bool add) {
  auto& d = sums.of[0];
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.%36.%36 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
      ", %32, %33, add, 1, 1, 0, %35;\n}"
      : SSM_SUMS(0)
      : "l"(a), "l"(b), "r"(add ? 1 : 0), "n"(kTurned ? 1 : 0), "C"(TypeName<T>::text));
}
template <class T, bool kTurned>
__device__ __forceinline__ void queue_product(Accumulators<1, 64>& sums, const uint32_t (&a)[4], uint64_t b, bool add) {
  auto& d = sums.of[0];
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.%39.%39 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
      ", {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}"
      : SSM_SUMS(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0), "n"(kTurned ? 1 : 0),
        "C"(TypeName<T>::text));
}
template <class T, bool kTurned>
__device__ __forceinline__ void queue_product(Accumulators<1, 128>& sums, uint64_t a, uint64_t b, bool add) {
  auto& d = sums.of[0];
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.%68.%68 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
      "%59, %60, %61, %62, %63}"
      ", %64, %65, add, 1, 1, 0, %67;\n}"
      : SSM_SUMS(0), SSM_SUMS(8)
      : "l"(a), "l"(b), "r"(add ? 1 : 0), "n"(kTurned ? 1 : 0), "C"(TypeName<T>::text));
}
template <class T, bool kTurned>
__device__ __forceinline__ void queue_product(Accumulators<1, 128>& sums, const uint32_t (&a)[4], uint64_t b,
                                              bool add) {
  auto& d = sums.of[0];
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.%71.%71 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
      "%59, %60, %61, %62, %63}"
      ", {%64, %65, %66, %67}, %68, add, 1, 1, %70;\n}"
      : SSM_SUMS(0), SSM_SUMS(8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0), "n"(kTurned ? 1 : 0),
        "C"(TypeName<T>::text));
}
#undef SSM_SUMS
#undef SSM_FOUR_SUMS

// Registers that queued products read or write are theirs between these two.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Keeps the compiler from reading sums before the wait that stands above it.
template <int kN>
__device__ __forceinline__ void products_are_in(Accumulators<1, kN>& sums) {
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums.of[0][n][i])::"memory");
}
// What this thread's loads wrote is what the tensor cores read, once all threads have met.
__device__ __forceinline__ void show_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// sums = 64 rows from `row` of the left tile times the kN rows of the right, over kP channels.
template <class T, int kP, int kLeftRows, int kN>
__device__ __forceinline__ void queue_rows_product(Accumulators<1, kN>& sums, const T* left, int row, const T* right) {
#pragma unroll
  for (int k = 0; k < kP / 16; ++k)
    queue_product<T, false>(sums, rows_operand<kLeftRows>(left, row, k), rows_operand<kN>(right, 0, k), k > 0);
}

// What is left of a product for the tensor cores: P or dS in T, 64 rows of kN columns.
template <int kN>
struct Weights {
  uint32_t of[kN / 16][4];
  template <class T>
  __device__ __forceinline__ void take(const Accumulators<1, kN>& from) {
#pragma unroll
    for (int k = 0; k < kN / 16; ++k) {
      const auto &low = from.of[0][2 * k], &high = from.of[0][2 * k + 1];
      of[k][0] = packed<T>(low[0], low[1]);
      of[k][1] = packed<T>(low[2], low[3]);
      of[k][2] = packed<T>(high[0], high[1]);
      of[k][3] = packed<T>(high[2], high[3]);
    }
  }
};
// sums += weights times the kN rows of a tile.
template <class T, int kP, int kN>
__device__ __forceinline__ void queue_weighted(Accumulators<1, kP>& sums, const Weights<kN>& weights, const T* tile) {
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) queue_product<T, true>(sums, weights.of[k], turned_operand<kN>(tile, k), true);
}

}  // namespace
}  // namespace ssm::cuda
