// GEMM through OpenBLAS, one thread a call, on fixed tiles shared out over our own threads.
#include <cblas.h>

#include <algorithm>

#include "ops/linear/gemm.h"

namespace ssm::cpu {
namespace {

// About 0.7 ms of one core's work: long enough to hide the packing of a tile's operands (their cost against the
// product is (m + n) / (m n)), short enough that the last tile does not keep the other cores waiting.
constexpr int64_t kTileOperations = int64_t{1} << 26;
constexpr int64_t kSmallestSide = 64;
constexpr int64_t kSideMultiple = 32;  // whole register blocks of every kernel OpenBLAS has for x86 and Arm

struct Tiles {
  int64_t m, n;  // sides of a tile
};

// A function of the sizes alone: what is summed in which order must not depend on the number of threads.
Tiles choose_tiles(int64_t m, int64_t n, int64_t k) {
  Tiles tiles{m, n};
  while (2 * tiles.m * tiles.n * k > kTileOperations && std::max(tiles.m, tiles.n) > kSmallestSide) {
    int64_t& longer = tiles.m > tiles.n ? tiles.m : tiles.n;
    longer = ((longer + 1) / 2 + kSideMultiple - 1) / kSideMultiple * kSideMultiple;
  }
  return tiles;
}

}  // namespace

void gemm(const Matrix<float>& a, Transpose transpose_a, const Matrix<float>& b, Transpose transpose_b,
          const Matrix<float>& c, bool accumulate, Threads& threads) {
  const int64_t m = c.rows, n = c.columns, k = transpose_a == Transpose::yes ? a.rows : a.columns;
  DCHECK((transpose_a == Transpose::yes ? a.columns : a.rows) == m);
  DCHECK((transpose_b == Transpose::yes ? b.rows : b.columns) == n);
  DCHECK((transpose_b == Transpose::yes ? b.columns : b.rows) == k);
  if (m == 0 || n == 0) return;
  static const bool once = (openblas_set_num_threads(1), true);
  static_cast<void>(once);
  const Tiles tile = choose_tiles(m, n, k);
  const int64_t across = (n + tile.n - 1) / tile.n, down = (m + tile.m - 1) / tile.m;
  threads.parallel(across * down, [&](int64_t task, int) {
    const int64_t i = task / across * tile.m, j = task % across * tile.n;
    const float* from_a = transpose_a == Transpose::yes ? a.data + i : a[i];
    const float* from_b = transpose_b == Transpose::yes ? b[j] : b.data + j;
    const auto narrow = [](int64_t size) { return static_cast<blasint>(size); };
    cblas_sgemm(CblasRowMajor, transpose_a == Transpose::yes ? CblasTrans : CblasNoTrans,
                transpose_b == Transpose::yes ? CblasTrans : CblasNoTrans, narrow(std::min(tile.m, m - i)),
                narrow(std::min(tile.n, n - j)), narrow(k), 1.0f, from_a, narrow(std::max<int64_t>(1, a.stride)),
                from_b, narrow(std::max<int64_t>(1, b.stride)), accumulate ? 1.0f : 0.0f, c[i] + j, narrow(c.stride));
  });
}

}  // namespace ssm::cpu
