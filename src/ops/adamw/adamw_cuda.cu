// adamw on a GPU in three passes, each over all parameters: partial sums of squares, the norm, the update. The update
// reads the norm where the second pass put it, so the host waits for nothing.
#include <math_constants.h>

#include <vector>

#include "core/cuda_kernel.cuh"
#include "ops/adamw/adamw.h"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256, kPack = 4;
constexpr int kNormThreads = 1024;
// Elements of one block: enough that finding its place in the table is nothing beside 270 KB of traffic, few enough
// that the last of its blocks leave little of the chip idle (130 million elements are 15 rounds of 8 blocks an SM).
constexpr int64_t kPiece = 8192;

enum class Copy : int { none, bf16, f16 };

struct Entry {
  float *value, *m, *v;
  const float* gradient;
  void* copy;
  int64_t count;
  int64_t first_block;
  float decay, rate;
  Copy copy_type;
  int packs;  // whether all pointers allow packs of 4
};

// A kernel's argument, so that no memory has to hold it and stay as it is until the GPU has come by: the driver takes
// 32,764 bytes of them.
constexpr int kEntries = 448;
struct Table {
  Entry entry[kEntries];
  int entries;
  int64_t blocks;
  int64_t first_sum;  // of its blocks' partial sums
};
static_assert(sizeof(Table) + 64 <= 32764);

struct Result {
  double norm, scale;
};

// What this block works on: elements [begin, end) of an entry, those before `packed` in packs.
struct Piece {
  const Entry& entry;
  int64_t begin, end, packed;
};
__device__ __forceinline__ Piece piece_of(const Table& table) {
  const auto block = static_cast<int64_t>(blockIdx.x);
  int low = 0, high = table.entries;  // the last entry that begins at or before this block
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.entry[middle].first_block <= block ? low : high) = middle;
  }
  const Entry& entry = table.entry[low];
  const int64_t begin = (block - entry.first_block) * kPiece;
  const int64_t end = min(begin + kPiece, entry.count);
  return {entry, begin, end, entry.packs ? begin + (end - begin) / kPack * kPack : begin};
}

__device__ __forceinline__ double sum_of_lanes(double sum) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  return sum;
}

// In an order that depends on nothing; the result is thread 0's.
template <int kCount>
__device__ __forceinline__ double sum_of_block(double sum) {
  __shared__ double sums[kCount / 32];
  sum = sum_of_lanes(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();  // the warps' sums are there
  return threadIdx.x < 32 ? sum_of_lanes(threadIdx.x < kCount / 32 ? sums[threadIdx.x] : 0) : 0;
}

__global__ void __launch_bounds__(kThreads) squares_kernel(const __grid_constant__ Table table, double* sums) {
  const Piece piece = piece_of(table);
  const float* gradient = piece.entry.gradient;
  double sum[kPack] = {};
#pragma unroll 4
  for (int64_t i = piece.begin + kPack * threadIdx.x; i < piece.packed; i += kPack * kThreads) {
    float g[kPack];
    load_floats<kPack>(gradient + i, g);
#pragma unroll
    for (int k = 0; k < kPack; ++k) sum[k] += static_cast<double>(g[k]) * static_cast<double>(g[k]);
  }
  for (int64_t i = piece.packed + threadIdx.x; i < piece.end; i += kThreads)
    sum[0] += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
  const double total = sum_of_block<kThreads>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  if (threadIdx.x == 0) sums[table.first_sum + blockIdx.x] = total;
}

// What must be finite besides the gradients: the losses, and the norm of the update before, unless null.
struct Condition {
  const float* losses;
  int64_t count;  // of the losses
  const double* norm;
};

__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const double* sums, int64_t count, double clip, Condition condition, Result* result) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kNormThreads) sum += sums[i];
  bool failed = condition.norm && !isfinite(*condition.norm);
  for (int64_t i = threadIdx.x; i < condition.count; i += kNormThreads) failed |= !isfinite(condition.losses[i]);
  if (__syncthreads_or(failed)) sum = CUDART_NAN;
  const double norm = sqrt(sum_of_block<kNormThreads>(sum));
  if (threadIdx.x == 0) *result = {norm, clip > 0 ? fmin(1.0, clip / (norm + 1e-6)) : 1.0};
}

struct Constants {
  float towards_g, beta2, rest2, eps, correction;
};

__device__ __forceinline__ void change(const Constants& c, float decay, float rate, float scale, float gradient,
                                       float& w, float& m, float& v) {
  const float g = gradient * scale;                                // (1)
  m = fmaf(g - m, c.towards_g, m);                                 // (2)
  v = fmaf(g * g, c.rest2, v * c.beta2);                           // (2)
  w = w * decay - rate * m / fmaf(sqrtf(v), c.correction, c.eps);  // (3)
}

__global__ void __launch_bounds__(kThreads)
    update_kernel(const __grid_constant__ Table table, const Constants constants, const Result* result) {
  const double norm = result->norm;
  if (!isfinite(norm)) return;
  const auto scale = static_cast<float>(result->scale);
  const Piece piece = piece_of(table);
  const Entry& entry = piece.entry;
  const float decay = entry.decay, rate = entry.rate;
#pragma unroll 2
  for (int64_t i = piece.begin + kPack * threadIdx.x; i < piece.packed; i += kPack * kThreads) {
    float g[kPack], w[kPack], m[kPack], v[kPack];
    load_floats<kPack>(entry.gradient + i, g);
    load_floats<kPack>(entry.value + i, w);
    load_floats<kPack>(entry.m + i, m);
    load_floats<kPack>(entry.v + i, v);
#pragma unroll
    for (int k = 0; k < kPack; ++k) change(constants, decay, rate, scale, g[k], w[k], m[k], v[k]);
    store_floats<kPack>(entry.value + i, w);
    store_floats<kPack>(entry.m + i, m);
    store_floats<kPack>(entry.v + i, v);
    if (entry.copy_type == Copy::bf16) store_floats<kPack>(static_cast<bf16*>(entry.copy) + i, w);
    if (entry.copy_type == Copy::f16) store_floats<kPack>(static_cast<f16*>(entry.copy) + i, w);
  }
  for (int64_t i = piece.packed + threadIdx.x; i < piece.end; i += kThreads) {
    change(constants, decay, rate, scale, entry.gradient[i], entry.value[i], entry.m[i], entry.v[i]);
    if (entry.copy_type == Copy::bf16) static_cast<bf16*>(entry.copy)[i] = from_float<bf16>(entry.value[i]);
    if (entry.copy_type == Copy::f16) static_cast<f16*>(entry.copy)[i] = from_float<f16>(entry.value[i]);
  }
}

std::vector<Table> tables_of(std::span<const AdamWItem> items, const AdamWStep& step) {
  std::vector<Table> tables;
  for (const AdamWItem& item : items) {
    if (item.value.count() == 0) continue;
    if (tables.empty() || tables.back().entries == kEntries) {
      const int64_t sums = tables.empty() ? 0 : tables.back().first_sum + tables.back().blocks;
      tables.emplace_back();
      tables.back().first_sum = sums;
    }
    Table& table = tables.back();
    bool packs = reinterpret_cast<uintptr_t>(item.copy.raw()) % (kPack * sizeof(bf16)) == 0;
    for (const Tensor* one : {&item.value, &item.m, &item.v, &item.gradient})
      packs &= reinterpret_cast<uintptr_t>(one->raw()) % (kPack * sizeof(float)) == 0;
    table.entry[table.entries++] = {.value = elements<float>(item.value),
                                    .m = elements<float>(item.m),
                                    .v = elements<float>(item.v),
                                    .gradient = elements<float>(item.gradient),
                                    .copy = item.copy.raw(),
                                    .count = item.value.count(),
                                    .first_block = table.blocks,
                                    .decay = static_cast<float>(step.decay(item)),
                                    .rate = static_cast<float>(step.rate(item)),
                                    .copy_type = !item.copy                         ? Copy::none
                                                 : item.copy.dtype() == DType::bf16 ? Copy::bf16
                                                                                    : Copy::f16,
                                    .packs = packs};
    table.blocks += divide_up(item.value.count(), kPiece);
  }
  return tables;
}

}  // namespace

Tensor adamw(std::span<const AdamWItem> items, const AdamWStep& step, const AdamWCondition& condition,
             const Device& device) {
  const std::vector<Table> tables = tables_of(items, step);
  const Stream queue = stream(device);
  const int64_t count = tables.empty() ? 0 : tables.back().first_sum + tables.back().blocks;
  const Tensor sums = Tensor::empty({count}, DType::f64, device), norm = Tensor::empty({2}, DType::f64, device);
  auto* result = static_cast<Result*>(norm.raw());
  const auto blocks = [](const Table& table) { return dim3(static_cast<unsigned>(table.blocks)); };
  for (const Table& table : tables)
    launch("adamw", squares_kernel, blocks(table), kThreads, queue, table, elements<double>(sums));
  const Condition also{.losses = elements<const float>(condition.losses),
                       .count = condition.losses ? condition.losses.count() : 0,
                       .norm = elements<const double>(condition.norm)};
  launch("adamw", norm_kernel, 1, kNormThreads, queue, elements<double>(sums), count, step.clip, also, result);
  const Constants constants{.towards_g = static_cast<float>(1 - step.beta1),
                            .beta2 = static_cast<float>(step.beta2),
                            .rest2 = static_cast<float>(1 - step.beta2),
                            .eps = static_cast<float>(step.eps),
                            .correction = static_cast<float>(step.root_correction())};
  for (const Table& table : tables)
    launch("adamw", update_kernel, blocks(table), kThreads, queue, table, constants, result);
  return norm.rows(0, 1);
}

}  // namespace ssm::cuda
