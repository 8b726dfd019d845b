// Which sequence of a packed call a row belongs to, on a GPU.
#pragma once

#include <cstdint>

namespace ssm::cuda {

// The last of `count` sequences that begins at or before the row: never an empty one, since the next begins there too.
__device__ __forceinline__ int64_t sequence_of(const int64_t* offsets, int64_t count, int64_t row) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

}  // namespace ssm::cuda
