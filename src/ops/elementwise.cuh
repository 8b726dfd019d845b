// Kernels that work element by element on rows: one pass over memory, several neighbours a thread where rows allow it.
#pragma once

#include <algorithm>

#include "core/cuda_kernel.cuh"

namespace ssm::cuda {
namespace {

constexpr int kPacks = 32, kRows = 8;  // of a block
constexpr int64_t kMostBlocks = 4096;  // down the rows; each goes on with later ones

template <class F>
__global__ void __launch_bounds__(kPacks* kRows) elementwise_kernel(F f, int64_t t, int64_t packs, int64_t count) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kPacks + threadIdx.x;
  if (pack >= packs) return;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * kRows + threadIdx.y; row < t;
       row += static_cast<int64_t>(gridDim.y) * kRows)
    f(row, pack * count);
}

// `make(T(), constant kCount)` gives the functor for rows of `columns`; all of `rows_used` must be on 16 bytes for
// packs.
template <class Make>
void elementwise(const char* op, const Tensor& of, int64_t columns, std::initializer_list<Tensor> rows_used,
                 Stream stream, const Make& make) {
  const int64_t t = of.size(0);
  with_element(of.dtype(), op, [&](auto element) {
    using T = decltype(element);
    constexpr int kPack = 16 / sizeof(T);
    const auto start = [&](const auto& f, int64_t count) {
      const int64_t packs = columns / count;
      const dim3 grid(static_cast<unsigned>(divide_up(packs, kPacks)),
                      static_cast<unsigned>(std::min(kMostBlocks, divide_up(t, kRows))));
      launch(op, elementwise_kernel<std::decay_t<decltype(f)>>, grid, dim3(kPacks, kRows), stream, f, t, packs, count);
    };
    const bool packed = columns % kPack == 0 && std::all_of(rows_used.begin(), rows_used.end(),
                                                            [](const Tensor& one) { return aligned(one, 16); });
    if (packed)
      start(make(T(), std::integral_constant<int, kPack>()), kPack);
    else
      start(make(T(), std::integral_constant<int, 1>()), 1);
  });
}

}  // namespace
}  // namespace ssm::cuda
