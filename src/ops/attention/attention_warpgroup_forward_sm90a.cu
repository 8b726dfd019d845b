// attention forward with warpgroups' products, bf16 and f16, compute capability 9.0: a block takes 64 rows of one head
// a warpgroup through all keys they see. While the tensor cores add P V of one tile of keys, the next tile's scores,
// which were queued before it, become weights. Equations: attention.h, README.md.
#include <cmath>

#include "ops/attention/attention_warpgroup.cuh"

namespace ssm::cuda {
namespace {

template <class T, int kP, int kN, int kGroups, int kStages, int kBlocks>
__global__ void __launch_bounds__(kGroups* kGroupThreads, kBlocks)
    forward_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, AttentionPlaces places,
                   const int64_t* pieces, int64_t count, Rows<T> out, float* lse) {
  constexpr int kRows = kGroupRows * kGroups, kThreads = kGroupThreads * kGroups;
  extern __shared__ __align__(1024) unsigned char shared[];
  T* const Q = reinterpret_cast<T*>(shared);
  T* const K = Q + kRows * kP;                                                  // kStages tiles
  T* const V = K + kStages * kN * kP;                                           // kStages tiles
  const int64_t* piece = pieces + (count - 1 - blockIdx.x / places.heads) * 4;  // those that see most go first
  const int64_t head = blockIdx.x % places.heads, s = piece[0], first_row = piece[1], rows = piece[2];
  const int64_t last = places.keys_before(s) + first_row - places.offsets[s];  // key that row 0 sees last
  const int64_t keys = last + rows, column = places.group_of(head) * places.p;
  const int p = static_cast<int>(places.p), lane = static_cast<int>(threadIdx.x) % kWarp,
            group_row = warpgroup() * kGroupRows, row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int tiles = static_cast<int>((keys + kN - 1) / kN);
  // Tiles that the warpgroup's rows see.
  const int own_tiles =
      group_row < rows ? static_cast<int>((last + min(rows, int64_t{group_row + kGroupRows}) + kN - 1) / kN) : 0;
  const T *first_k = places.key(k, s, 0) + column, *first_v = places.key(v, s, 0) + column;
  const auto queue_keys = [&](int tile) {
    const int64_t begin = int64_t{tile} * kN;
    if (tile < tiles) {
      queue_rows_tile<kP, kN, kThreads>(K + tile % kStages * kN * kP, first_k + begin * k.stride, k.stride,
                                        keys - begin, p);
      queue_rows_tile<kP, kN, kThreads>(V + tile % kStages * kN * kP, first_v + begin * v.stride, v.stride,
                                        keys - begin, p);
    }
    end_queue();
  };
  queue_rows_tile<kP, kRows, kThreads>(Q, q[first_row] + head * p, q.stride, rows, p);
#pragma unroll
  for (int tile = 0; tile < kStages - 1; ++tile) queue_keys(tile);

  const float scale = places.scale * kLog2e;  // scores in powers of 2
  const float slope = places.slopes ? places.slopes[head] / places.scale : 0;
  Accumulators<1, kP> sums;
  sums.clear();
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0}, before[2];
  Accumulators<1, kN> scores;
  Weights<kN> weights;
  // Scores of a tile to weights below the largest so far; `before` is what all that was summed up to now shrinks by.
  const auto weigh = [&](int tile) {
    const int64_t begin = int64_t{tile} * kN;
    if (slope != 0) {
      const auto distance = static_cast<float>(last + row - begin);
      for_each(scores,
               [&](int i, int j, float& score) { score = fmaf(slope, static_cast<float>(j - i) - distance, score); });
    }
    if (last + group_row - begin < kN - 1) {
      const int own = static_cast<int>(last + row - begin);  // key of the tile that the warp's row 0 sees last
      for_each(scores, [&](int i, int j, float& score) {
        if (j > own + i) score = -INFINITY;
      });
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[half];
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
        most = fmaxf(most, fmaxf(scores.of[0][n][2 * half], scores.of[0][n][2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const float shift = -scale * most;
      before[half] = power_of_2(fmaf(scale, largest[half], shift));
      largest[half] = most;
      float sum[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores.of[0][n][2 * half + i];
          score = power_of_2(fmaf(score, scale, shift));
          sum[i] += score;
        }
      total[half] = fmaf(total[half], before[half], sum[0] + sum[1]);
    }
  };

  // Until tile + 1 is there and nobody reads tile - 1 any more; its place is filled.
  const auto next_tile = [&](int tile) {
    wait_for_queues<kStages - 3>();
    show_to_tensor_cores();
    __syncthreads();
    queue_keys(tile + kStages - 1);
  };
  wait_for_queues<kStages - 2>();
  show_to_tensor_cores();
  __syncthreads();
  if (own_tiles > 0) {
    begin_products();
    queue_rows_product<T, kP, kRows>(scores, Q, group_row, K);
    end_products();
    wait_for_products<0>();
    products_are_in(scores);
    weigh(0);
    weights.template take<T>(scores);
    for (int tile = 0; tile + 1 < own_tiles; ++tile) {
      next_tile(tile);
      begin_products();
      queue_rows_product<T, kP, kRows>(scores, Q, group_row, K + (tile + 1) % kStages * kN * kP);
      end_products();
      queue_weighted<T, kP>(sums, weights, V + tile % kStages * kN * kP);
      end_products();
      wait_for_products<1>();
      products_are_in(scores);
      weigh(tile + 1);
      wait_for_products<0>();
      products_are_in(sums);
      weights.template take<T>(scores);
#pragma unroll
      for (int n = 0; n < kP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.of[0][n][i] *= before[i / 2];
    }
    begin_products();
    queue_weighted<T, kP>(sums, weights, V + (own_tiles - 1) % kStages * kN * kP);
    end_products();
    wait_for_products<0>();
    products_are_in(sums);
  }
  for (int tile = max(own_tiles - 1, 0); tile + 1 < tiles; ++tile) next_tile(tile);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
    const int here = row + lane / 4 + 8 * half;
    if (lse && lane % 4 == 0 && here < rows)
      lse[head * places.tokens + first_row + here] = scale * largest[half] + log2f(total[half]);
  }
  store_rows<T, false>(sums, out[first_row] + head * p, out.stride, row, rows, p,
                       [&](int, int half) { return 1 / total[half]; });
}

template <class T, int kP, int kN, int kGroups, int kStages, int kBlocks>
void forward(const AttentionForward& args, Stream stream) {
  constexpr int kRows = kGroupRows * kGroups;
  const AttentionTables tables(args.sizes, args.seqs, args.q.size(0), args.k);
  const Tensor& pieces = args.seqs.pieces(args.q.device(), kRows);
  const int64_t blocks = pieces.size(0) * args.sizes.heads;
  require(blocks < (int64_t{1} << 31), "attention: ", blocks, " tiles in one call; pass fewer sequences");
  launch("attention", forward_kernel<T, kP, kN, kGroups, kStages, kBlocks>, dim3(static_cast<unsigned>(blocks)),
         kGroups * kGroupThreads, {.shared = sizeof(T) * kP * (kRows + 2 * kStages * kN)}, stream,
         rows<const T>(args.q), key_rows<const T>(args.k), key_rows<const T>(args.v), tables.places,
         elements<const int64_t>(pieces), pieces.size(0), rows<T>(args.out), elements<float>(args.lse));
}

template <class T>
void forward_of(const AttentionForward& args, Stream stream) {
  if (args.sizes.p <= 64) return forward<T, 64, 64, 2, 3, 2>(args, stream);
  forward<T, 128, 64, 2, 3, 1>(args, stream);
}

}  // namespace

void attention_warpgroup_forward(const AttentionForward& args, Stream stream) {
  args.q.dtype() == DType::bf16 ? forward_of<bf16>(args, stream) : forward_of<f16>(args, stream);
}

}  // namespace ssm::cuda
