// attention forward on tensor cores, bf16 and f16: a block takes up to 128 rows of one head through all keys they see,
// two tiles of keys and values in shared memory, scores and the running softmax in registers, so that no score ever
// reaches memory (Dao 2023). Equations: attention.h, README.md.
#include <cmath>

#include "ops/attention/attention_tiles.cuh"

namespace ssm::cuda {
namespace {

template <class T, int kP, int kM, int kN>
__global__ void __launch_bounds__(kTileThreads)
    forward_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, AttentionPlaces places,
                   const int64_t* pieces, int64_t count, Rows<T> out, float* lse) {
  constexpr int kRows = 16 * kM * kTileWarps;
  extern __shared__ __align__(16) unsigned char shared[];
  T* const Q = reinterpret_cast<T*>(shared);
  T* const K = Q + kRows * kP;                                                  // two tiles
  T* const V = K + 2 * kN * kP;                                                 // two tiles
  const int64_t* piece = pieces + (count - 1 - blockIdx.x / places.heads) * 4;  // those that see most go first
  const int64_t head = blockIdx.x % places.heads, s = piece[0], first_row = piece[1], rows = piece[2];
  const int64_t last = places.keys_before(s) + first_row - places.offsets[s];  // key that row 0 sees last
  const int64_t keys = last + rows, column = places.group_of(head) * places.p;
  const int p = static_cast<int>(places.p), lane = static_cast<int>(threadIdx.x) % kWarp,
            row = static_cast<int>(threadIdx.x) / kWarp * 16 * kM;
  const int tiles = static_cast<int>((keys + kN - 1) / kN);
  const auto queue_keys = [&](int tile) {
    const int64_t begin = int64_t{tile} * kN;
    queue_tile<kP, kN>(K + tile % 2 * kN * kP, places.key(k, s, begin) + column, k.stride, keys - begin, p);
    queue_tile<kP, kN>(V + tile % 2 * kN * kP, places.key(v, s, begin) + column, v.stride, keys - begin, p);
    end_queue();
  };
  queue_tile<kP, kRows>(Q, q[first_row] + head * p, q.stride, rows, p);
  queue_keys(0);

  const float scale = places.scale * kLog2e;  // scores in powers of 2
  const float slope = places.slopes ? places.slopes[head] / places.scale : 0;
  Accumulators<kM, kP> sums;
  sums.clear();
  float largest[kM][2], total[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) largest[m][half] = -INFINITY, total[m][half] = 0;

  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      queue_keys(tile + 1);
      wait_for_queues<1>();
    } else {
      wait_for_queues<0>();
    }
    __syncthreads();
    const int64_t begin = int64_t{tile} * kN;
    const auto own =
        static_cast<int>(min(last + row - begin, int64_t{kN}));  // key of the tile the warp's row 0 sees last
    if (own + 16 * kM > 0) {
      Accumulators<kM, kN> scores;
      multiply_rows<T, kP>(scores, Q, row, K + tile % 2 * kN * kP);
      if (slope != 0) {
        const auto distance = static_cast<float>(last + row - begin);
        for_each(scores,
                 [&](int i, int j, float& score) { score = fmaf(slope, static_cast<float>(j - i) - distance, score); });
      }
      if (own < kN - 1)
        for_each(scores, [&](int i, int j, float& score) {
          if (j > own + i) score = -INFINITY;
        });
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float most = largest[m][half];
#pragma unroll
          for (int n = 0; n < kN / 8; ++n)
            most = fmaxf(most, fmaxf(scores.of[m][n][2 * half], scores.of[m][n][2 * half + 1]));
          most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
          most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
          const float before = power_of_2(scale * (largest[m][half] - most)), shift = -scale * most;
          largest[m][half] = most;
          total[m][half] *= before;
#pragma unroll
          for (int n = 0; n < kN / 8; ++n)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
              scores.of[m][n][i] = power_of_2(fmaf(scores.of[m][n][i], scale, shift));
              total[m][half] += scores.of[m][n][i];
            }
#pragma unroll
          for (int n = 0; n < kP / 8; ++n) sums.of[m][n][2 * half] *= before, sums.of[m][n][2 * half + 1] *= before;
        }
      add_weighted<T>(sums, scores, V + tile % 2 * kN * kP);
    }
    __syncthreads();  // before the tile is written over
  }

#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[m][half] += __shfl_xor_sync(0xffffffffu, total[m][half], 1);
      total[m][half] += __shfl_xor_sync(0xffffffffu, total[m][half], 2);
      const int here = row + 16 * m + lane / 4 + 8 * half;
      if (lse && lane % 4 == 0 && here < rows)
        lse[head * places.tokens + first_row + here] = scale * largest[m][half] + log2f(total[m][half]);
    }
  store_rows<T, false>(sums, out[first_row] + head * p, out.stride, row, rows, p,
                       [&](int m, int half) { return 1 / total[m][half]; });
}

template <class T, int kP, int kM, int kN>
void forward(const AttentionForward& args, Stream stream) {
  constexpr int kRows = 16 * kM * kTileWarps;
  const AttentionTables tables(args.sizes, args.seqs, args.q.size(0), args.k);
  const Tensor& pieces = args.seqs.pieces(args.q.device(), kRows);
  const int64_t blocks = pieces.size(0) * args.sizes.heads;
  require(blocks < (int64_t{1} << 31), "attention: ", blocks, " tiles in one call; pass fewer sequences");
  launch("attention", forward_kernel<T, kP, kM, kN>, dim3(static_cast<unsigned>(blocks)), kTileThreads,
         {.shared = sizeof(T) * kP * (kRows + 4 * kN)}, stream, rows<const T>(args.q), key_rows<const T>(args.k),
         key_rows<const T>(args.v), tables.places, elements<const int64_t>(pieces), pieces.size(0), rows<T>(args.out),
         elements<float>(args.lse));
}

template <class T>
void forward_of(const AttentionForward& args, Stream stream) {
  const int64_t p = args.sizes.p;
  if (p <= 32) return forward<T, 32, 2, 64>(args, stream);
  if (p <= 64) return forward<T, 64, 2, 64>(args, stream);
  if (p <= 128) return forward<T, 128, 2, 64>(args, stream);
  forward<T, 256, 1, 32>(args, stream);
}

}  // namespace

void attention_tile_forward(const AttentionForward& args, Stream stream) {
  args.q.dtype() == DType::bf16 ? forward_of<bf16>(args, stream) : forward_of<f16>(args, stream);
}

}  // namespace ssm::cuda
