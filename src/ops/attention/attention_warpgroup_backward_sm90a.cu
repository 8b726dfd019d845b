// attention backward with warpgroups' products, bf16 and f16, compute capability 9.0: two kernels as in
// attention_backward_cuda.cu, each owning what it writes. A tile's last products run on while the next tile's first
// are made. Equations: README.md.
#include <cmath>

#include "ops/attention/attention_warpgroup.cuh"

namespace ssm::cuda {
namespace {

// A tile's place is filled again two tiles later, when no product of any warpgroup reads it any more.
template <class T, int kP, int kN, int kGroups, int kStages>
__global__ void __launch_bounds__(kGroups* kGroupThreads, 1)
    rows_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, Rows<const T> dout, AttentionPlaces places,
                const int64_t* pieces, int64_t count, const float* lse, const float* shared_sums, Rows<T> dq) {
  constexpr int kRows = kGroupRows * kGroups, kThreads = kGroupThreads * kGroups;
  extern __shared__ __align__(1024) unsigned char shared[];
  T* const Q = reinterpret_cast<T*>(shared);
  T* const G = Q + kRows * kP;
  T* const K = G + kRows * kP;         // kStages tiles
  T* const V = K + kStages * kN * kP;  // kStages tiles
  const int64_t* piece = pieces + (count - 1 - blockIdx.x / places.heads) * 4;
  const int64_t head = blockIdx.x % places.heads, s = piece[0], first_row = piece[1], rows = piece[2];
  const int64_t last = places.keys_before(s) + first_row - places.offsets[s];
  const int64_t keys = last + rows, column = places.group_of(head) * places.p;
  const int p = static_cast<int>(places.p), lane = static_cast<int>(threadIdx.x) % kWarp,
            group_row = warpgroup() * kGroupRows, row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int tiles = static_cast<int>((keys + kN - 1) / kN);
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
  queue_rows_tile<kP, kRows, kThreads>(G, dout[first_row] + head * p, dout.stride, rows, p);
#pragma unroll
  for (int tile = 0; tile < kStages - 2; ++tile) queue_keys(tile);

  const float scale = places.scale * kLog2e, slope = places.slopes ? places.slopes[head] * kLog2e : 0;
  float under[2], common[2];  // lse and the sum of (6) of this lane's rows
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int here = row + lane / 4 + 8 * half;
    const int64_t at = head * places.tokens + first_row + here;
    under[half] = here < rows ? lse[at] : INFINITY;
    common[half] = here < rows ? shared_sums[at] : 0;
  }
  Accumulators<1, kP> sums;
  sums.clear();
  Accumulators<1, kN> P, dS;
  Weights<kN> weights;
  const auto next_tile = [&](int tile) {
    wait_for_queues<kStages - 3>();
    show_to_tensor_cores();
    __syncthreads();
    queue_keys(tile + kStages - 2);
  };
  for (int tile = 0; tile < own_tiles; ++tile) {
    next_tile(tile);
    const T *tile_k = K + tile % kStages * kN * kP, *tile_v = V + tile % kStages * kN * kP;
    begin_products();
    queue_rows_product<T, kP, kRows>(P, Q, group_row, tile_k);
    end_products();
    queue_rows_product<T, kP, kRows>(dS, G, group_row, tile_v);  // (5)
    end_products();
    wait_for_products<1>();
    products_are_in(P);
    const int64_t begin = int64_t{tile} * kN;
    if (slope != 0) {
      const float distance = static_cast<float>(last + row - begin), by = slope / scale;
      for_each(P, [&](int i, int j, float& score) { score = fmaf(by, static_cast<float>(j - i) - distance, score); });
    }
    if (last + group_row - begin < kN - 1) {
      const int own = static_cast<int>(last + row - begin);  // key of the tile that the warp's row 0 sees last
      for_each(P, [&](int i, int j, float& score) {
        if (j > own + i) score = -INFINITY;
      });
    }
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) P.of[0][n][i] = power_of_2(fmaf(P.of[0][n][i], scale, -under[i / 2]));
    wait_for_products<0>();
    products_are_in(dS);
#pragma unroll
    for (int n = 0; n < kN / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) dS.of[0][n][i] = P.of[0][n][i] * (dS.of[0][n][i] - common[i / 2]);  // (6)
    weights.template take<T>(dS);
    begin_products();
    queue_weighted<T, kP>(sums, weights, tile_k);  // (7)
    end_products();
  }
  wait_for_products<0>();
  products_are_in(sums);
  for (int tile = own_tiles; tile < tiles; ++tile) next_tile(tile);
  store_rows<T, false>(sums, dq[first_row] + head * p, dq.stride, row, rows, p, [&](int, int) { return places.scale; });
}

template <class T, int kP, int kN, int kGroups, int kStages>
__global__ void __launch_bounds__(kGroups* kGroupThreads, 1)
    keys_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, Rows<const T> dout, AttentionPlaces places,
                const int64_t* pieces, const float* lse, const float* shared_sums, KeyRows<T> dk, KeyRows<T> dv) {
  constexpr int kKeys = kGroupRows * kGroups, kThreads = kGroupThreads * kGroups;
  extern __shared__ __align__(1024) unsigned char shared[];
  T* const K = reinterpret_cast<T*>(shared);
  T* const V = K + kKeys * kP;
  T* const Q = V + kKeys * kP;                                           // kStages tiles
  T* const G = Q + kStages * kN * kP;                                    // kStages tiles
  float* const under = reinterpret_cast<float*>(G + kStages * kN * kP);  // (kStages, kN): lse
  float* const common = under + kStages * kN;                            // (kStages, kN): the sum of (6)
  const int64_t *piece = pieces + blockIdx.x / places.groups * 4, group = blockIdx.x % places.groups;
  const int64_t s = piece[0], begin = piece[3] * kKeys, keys = piece[2], before = places.keys_before(s),
                rows = places.length(s), each = places.heads / places.groups;
  const int p = static_cast<int>(places.p), lane = static_cast<int>(threadIdx.x) % kWarp,
            group_row = warpgroup() * kGroupRows, row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int64_t first = max(begin - before, int64_t{0}) / kN * kN;  // row that may see a key
  const auto tiles = static_cast<int>((rows - first + kN - 1) / kN), all = tiles * static_cast<int>(each);
  const auto queue_rows = [&](int at) {
    if (at < all) {
      const int64_t head = group * each + at / tiles, begin_row = first + int64_t{at % tiles} * kN,
                    here = places.offsets[s] + begin_row;
      const int stage = at % kStages;
      queue_rows_tile<kP, kN, kThreads>(Q + stage * kN * kP, q[here] + head * p, q.stride, rows - begin_row, p);
      queue_rows_tile<kP, kN, kThreads>(G + stage * kN * kP, dout[here] + head * p, dout.stride, rows - begin_row, p);
      if (const int i = static_cast<int>(threadIdx.x); i < kN) {
        const bool there = begin_row + i < rows;
        const int64_t place = head * places.tokens + here + i;
        under[stage * kN + i] = there ? lse[place] : INFINITY;
        common[stage * kN + i] = there ? shared_sums[place] : 0;
      }
    }
    end_queue();
  };
  queue_rows_tile<kP, kKeys, kThreads>(K, places.key(k, s, begin) + group * p, k.stride, keys, p);
  queue_rows_tile<kP, kKeys, kThreads>(V, places.key(v, s, begin) + group * p, v.stride, keys, p);
#pragma unroll
  for (int at = 0; at < kStages - 2; ++at) queue_rows(at);

  const float scale = places.scale * kLog2e;
  Accumulators<1, kP> of_k, of_v;
  of_k.clear();
  of_v.clear();
  Accumulators<1, kN> P, dS;  // keys by rows
  Weights<kN> weights_p, weights_s;
  for (int at = 0; at < all; ++at) {
    wait_for_queues<kStages - 3>();
    show_to_tensor_cores();
    __syncthreads();
    queue_rows(at + kStages - 2);
    const int stage = at % kStages;
    const int64_t begin_row = first + int64_t{at % tiles} * kN;
    // Row of the tile that is the first to see the warpgroup's key 0.
    const auto own = static_cast<int>(max(begin + group_row - before - begin_row, int64_t{-kGroupRows}));
    if (own >= kN || group_row >= keys) continue;
    const T *rows_q = Q + stage * kN * kP, *rows_g = G + stage * kN * kP;
    begin_products();
    queue_rows_product<T, kP, kKeys>(P, K, group_row, rows_q);
    end_products();
    queue_rows_product<T, kP, kKeys>(dS, V, group_row, rows_g);  // (5)
    end_products();
    wait_for_products<1>();
    products_are_in(P);
    const float slope = places.slopes ? places.slopes[group * each + at / tiles] / places.scale : 0;
    if (slope != 0) {
      const auto distance = static_cast<float>(begin + row - before - begin_row);
      for_each(P,
               [&](int j, int i, float& score) { score = fmaf(slope, static_cast<float>(j - i) + distance, score); });
    }
    if (own + kGroupRows > 1) {
      const int own_key = own + row - group_row;
      for_each(P, [&](int j, int i, float& score) {
        if (own_key + j > i) score = -INFINITY;
      });
    }
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) {
      const float2 below = *reinterpret_cast<const float2*>(under + stage * kN + 8 * n + lane % 4 * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float &low = P.of[0][n][2 * half], &high = P.of[0][n][2 * half + 1];
        low = power_of_2(fmaf(low, scale, -below.x));
        high = power_of_2(fmaf(high, scale, -below.y));
      }
    }
    weights_p.template take<T>(P);
    begin_products();
    queue_weighted<T, kP>(of_v, weights_p, rows_g);  // (7)
    end_products();
    wait_for_products<1>();
    products_are_in(dS);
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) {
      const float2 sum = *reinterpret_cast<const float2*>(common + stage * kN + 8 * n + lane % 4 * 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        dS.of[0][n][2 * half] = P.of[0][n][2 * half] * (dS.of[0][n][2 * half] - sum.x);  // (6)
        dS.of[0][n][2 * half + 1] = P.of[0][n][2 * half + 1] * (dS.of[0][n][2 * half + 1] - sum.y);
      }
    }
    weights_s.template take<T>(dS);
    begin_products();
    queue_weighted<T, kP>(of_k, weights_s, rows_q);
    end_products();
  }
  wait_for_products<0>();
  products_are_in(of_k);
  products_are_in(of_v);
  store_rows<T, true>(of_k, places.key(dk, s, begin) + group * p, dk.stride, row, keys, p,
                      [&](int, int) { return places.scale; });
  store_rows<T, true>(of_v, places.key(dv, s, begin) + group * p, dv.stride, row, keys, p,
                      [](int, int) { return 1.0f; });
}

unsigned blocks_of(int64_t pieces, int64_t heads) {
  require(pieces * heads < (int64_t{1} << 31), "attention: ", pieces, " tiles and ", heads,
          " heads in one call; pass fewer sequences");
  return static_cast<unsigned>(pieces * heads);
}

// Warpgroups of a block of rows_kernel and of keys_kernel.
template <class T, int kP, int kRowGroups, int kKeyGroups>
void backward(const AttentionBackward& args, Stream stream) {
  constexpr const char* kName = "attention backward";
  constexpr int kRows = kGroupRows * kRowGroups, kKeys = kGroupRows * kKeyGroups, kN = 64, kStages = 4;
  const Device& device = args.q.device();
  const AttentionTables tables(args.sizes, args.seqs, args.q.size(0), args.k);
  const auto q = rows<const T>(args.q), dout = rows<const T>(args.dout);
  const auto k = key_rows<const T>(args.k), v = key_rows<const T>(args.v);
  const auto* lse = elements<const float>(args.lse);
  const Tensor sums = attention_shared_sums(args, tables.places, stream);

  const Tensor of_keys = key_pieces(args.sizes, args.seqs, kKeys, device);
  launch(kName, keys_kernel<T, kP, kN, kKeyGroups, kStages>, dim3(blocks_of(of_keys.size(0), args.sizes.groups)),
         kKeyGroups * kGroupThreads,
         {.shared = sizeof(T) * kP * (2 * kKeys + 2 * kStages * kN) + sizeof(float) * 2 * kStages * kN}, stream, q, k,
         v, dout, tables.places, elements<const int64_t>(of_keys), lse, elements<const float>(sums),
         key_rows<T>(args.dk), key_rows<T>(args.dv));

  const Tensor& pieces = args.seqs.pieces(device, kRows);
  launch(kName, rows_kernel<T, kP, kN, kRowGroups, kStages>, dim3(blocks_of(pieces.size(0), args.sizes.heads)),
         kRowGroups * kGroupThreads, {.shared = sizeof(T) * kP * (2 * kRows + 2 * kStages * kN)}, stream, q, k, v, dout,
         tables.places, elements<const int64_t>(pieces), pieces.size(0), lse, elements<const float>(sums),
         rows<T>(args.dq));
}

template <class T>
void backward_of(const AttentionBackward& args, Stream stream) {
  args.sizes.p <= 64 ? backward<T, 64, 3, 2>(args, stream) : backward<T, 128, 2, 2>(args, stream);
}

}  // namespace

void attention_warpgroup_backward(const AttentionBackward& args, Stream stream) {
  args.q.dtype() == DType::bf16 ? backward_of<bf16>(args, stream) : backward_of<f16>(args, stream);
}

}  // namespace ssm::cuda
