// attention backward on tensor cores, bf16 and f16, in two kernels that make P again, each owning what it writes: dQ by
// blocks of rows, dK and dV by blocks of keys, for all heads and rows that see them in order. So nothing is added
// atomically; the price is two of seven products. Equations: README.md.
#include <cmath>

#include "ops/attention/attention_tiles.cuh"

namespace ssm::cuda {
namespace {

// The sum of (6), which is dout . out: a warp a row and head. shared (m, t).
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    shared_kernel(Rows<const T> out, Rows<const T> dout, AttentionPlaces places, float* shared) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kTileWarps + threadIdx.x / kWarp;
  if (at >= places.tokens * places.heads) return;
  const int64_t row = at / places.heads, head = at % places.heads;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float sum = 0;
  for (int64_t c = 2 * lane; c < places.p; c += 2 * kWarp) {
    float a[2], b[2];
    load_floats(out[row] + head * places.p + c, a);
    load_floats(dout[row] + head * places.p + c, b);
    sum += a[0] * b[0] + a[1] * b[1];
  }
  sum = warp_sum(sum);
  if (lane == 0) shared[head * places.tokens + row] = sum;
}

template <class T, int kP, int kM, int kN>
__global__ void __launch_bounds__(kTileThreads)
    rows_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, Rows<const T> dout, AttentionPlaces places,
                const int64_t* pieces, int64_t count, const float* lse, const float* shared_sums, Rows<T> dq) {
  constexpr int kRows = 16 * kM * kTileWarps;
  extern __shared__ __align__(16) unsigned char shared[];
  T* const Q = reinterpret_cast<T*>(shared);
  T* const G = Q + kRows * kP;
  T* const K = G + kRows * kP;   // two tiles
  T* const V = K + 2 * kN * kP;  // two tiles
  const int64_t* piece = pieces + (count - 1 - blockIdx.x / places.heads) * 4;
  const int64_t head = blockIdx.x % places.heads, s = piece[0], first_row = piece[1], rows = piece[2];
  const int64_t last = places.keys_before(s) + first_row - places.offsets[s];
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
  queue_tile<kP, kRows>(G, dout[first_row] + head * p, dout.stride, rows, p);
  queue_keys(0);

  const float scale = places.scale * kLog2e, slope = places.slopes ? places.slopes[head] * kLog2e : 0;
  float under[kM][2], common[kM][2];  // lse and the sum of (6) of this lane's rows
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int here = row + 16 * m + lane / 4 + 8 * half;
      const int64_t at = head * places.tokens + first_row + here;
      under[m][half] = here < rows ? lse[at] : INFINITY;
      common[m][half] = here < rows ? shared_sums[at] : 0;
    }
  Accumulators<kM, kP> sums;
  sums.clear();
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
      Accumulators<kM, kN> P, dS;
      multiply_rows<T, kP>(P, Q, row, K + tile % 2 * kN * kP);
      multiply_rows<T, kP>(dS, G, row, V + tile % 2 * kN * kP);  // (5)
      const auto distance = static_cast<float>(last + row - begin);
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int here = 16 * m + lane / 4 + i / 2 * 8, j = 8 * n + lane % 4 * 2 + i % 2;
            float score = fmaf(P.of[m][n][i], scale, -under[m][i / 2]);
            if (slope != 0) score = fmaf(slope, static_cast<float>(j - here) - distance, score);
            const float weight = j > own + here ? 0 : power_of_2(score);
            dS.of[m][n][i] = weight * (dS.of[m][n][i] - common[m][i / 2]);  // (6)
          }
      add_weighted<T>(sums, dS, K + tile % 2 * kN * kP);  // (7)
    }
    __syncthreads();
  }
  store_rows<T, false>(sums, dq[first_row] + head * p, dq.stride, row, rows, p, [&](int, int) { return places.scale; });
}

template <class T, int kP, int kM, int kN>
__global__ void __launch_bounds__(kTileThreads)
    keys_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, Rows<const T> dout, AttentionPlaces places,
                const int64_t* pieces, const float* lse, const float* shared_sums, KeyRows<T> dk, KeyRows<T> dv) {
  constexpr int kKeys = 16 * kM * kTileWarps;
  extern __shared__ __align__(16) unsigned char shared[];
  T* const K = reinterpret_cast<T*>(shared);
  T* const V = K + kKeys * kP;
  T* const Q = V + kKeys * kP;                                     // two tiles
  T* const G = Q + 2 * kN * kP;                                    // two tiles
  float* const under = reinterpret_cast<float*>(G + 2 * kN * kP);  // (2, kN): lse
  float* const common = under + 2 * kN;                            // (2, kN): the sum of (6)
  const int64_t *piece = pieces + blockIdx.x / places.groups * 4, group = blockIdx.x % places.groups;
  const int64_t s = piece[0], begin = piece[3] * kKeys, keys = piece[2], before = places.keys_before(s),
                rows = places.length(s), each = places.heads / places.groups;
  const int p = static_cast<int>(places.p), lane = static_cast<int>(threadIdx.x) % kWarp,
            row = static_cast<int>(threadIdx.x) / kWarp * 16 * kM;
  const int64_t first = max(begin - before, int64_t{0}) / kN * kN;  // row that may see a key
  const auto tiles = static_cast<int>((rows - first + kN - 1) / kN), all = tiles * static_cast<int>(each);
  const auto queue_rows = [&](int at) {
    const int64_t head = group * each + at / tiles, begin_row = first + int64_t{at % tiles} * kN,
                  here = places.offsets[s] + begin_row;
    const int stage = at % 2;
    queue_tile<kP, kN>(Q + stage * kN * kP, q[here] + head * p, q.stride, rows - begin_row, p);
    queue_tile<kP, kN>(G + stage * kN * kP, dout[here] + head * p, dout.stride, rows - begin_row, p);
    end_queue();
    if (const int i = static_cast<int>(threadIdx.x); i < kN) {
      const bool there = begin_row + i < rows;
      const int64_t place = head * places.tokens + here + i;
      under[stage * kN + i] = there ? lse[place] : INFINITY;
      common[stage * kN + i] = there ? shared_sums[place] : 0;
    }
  };
  queue_tile<kP, kKeys>(K, places.key(k, s, begin) + group * p, k.stride, keys, p);
  queue_tile<kP, kKeys>(V, places.key(v, s, begin) + group * p, v.stride, keys, p);
  queue_rows(0);

  const float scale = places.scale * kLog2e;
  Accumulators<kM, kP> of_k, of_v;
  of_k.clear();
  of_v.clear();
  for (int at = 0; at < all; ++at) {
    if (at + 1 < all) {
      queue_rows(at + 1);
      wait_for_queues<1>();
    } else {
      wait_for_queues<0>();
    }
    __syncthreads();
    const int stage = at % 2;
    const int64_t begin_row = first + int64_t{at % tiles} * kN;
    // Row of the tile that is the first to see the warp's key 0.
    const auto own = static_cast<int>(max(begin + row - before - begin_row, int64_t{-16 * kM}));
    if (own < kN) {
      const T *rows_q = Q + stage * kN * kP, *rows_g = G + stage * kN * kP;
      const float slope = places.slopes ? places.slopes[group * each + at / tiles] * kLog2e : 0;
      const auto distance = static_cast<float>(begin + row - before - begin_row);
      Accumulators<kM, kN> P, dS;  // keys by rows
      multiply_rows<T, kP>(P, K, row, rows_q);
      multiply_rows<T, kP>(dS, V, row, rows_g);  // (5)
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int here = 8 * n + lane % 4 * 2 + i;
          const float below = under[stage * kN + here], sum = common[stage * kN + here];
#pragma unroll
          for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int j = 16 * m + lane / 4 + 8 * half;
              float &weight = P.of[m][n][2 * half + i], &slack = dS.of[m][n][2 * half + i];
              float score = fmaf(weight, scale, -below);
              if (slope != 0) score = fmaf(slope, static_cast<float>(j - here) + distance, score);
              weight = own + j > here ? 0 : power_of_2(score);
              slack = weight * (slack - sum);  // (6)
            }
        }
      add_weighted<T>(of_v, P, rows_g);  // (7)
      add_weighted<T>(of_k, dS, rows_q);
    }
    __syncthreads();
  }
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

// Rows: kM, kN of rows_kernel; keys: those of keys_kernel.
template <class T, int kP, int kRowsM, int kRowsN, int kKeysM, int kKeysN>
void backward(const AttentionBackward& args, Stream stream) {
  constexpr const char* kName = "attention backward";
  constexpr int kRows = 16 * kRowsM * kTileWarps, kKeys = 16 * kKeysM * kTileWarps;
  const Device& device = args.q.device();
  const AttentionTables tables(args.sizes, args.seqs, args.q.size(0), args.k);
  const auto q = rows<const T>(args.q), dout = rows<const T>(args.dout);
  const auto k = key_rows<const T>(args.k), v = key_rows<const T>(args.v);
  const auto* lse = elements<const float>(args.lse);
  const Tensor sums = attention_shared_sums(args, tables.places, stream);

  const Tensor of_keys = key_pieces(args.sizes, args.seqs, kKeys, device);
  launch(kName, keys_kernel<T, kP, kKeysM, kKeysN>, dim3(blocks_of(of_keys.size(0), args.sizes.groups)), kTileThreads,
         {.shared = sizeof(T) * kP * (2 * kKeys + 4 * kKeysN) + sizeof(float) * 4 * kKeysN}, stream, q, k, v, dout,
         tables.places, elements<const int64_t>(of_keys), lse, elements<const float>(sums), key_rows<T>(args.dk),
         key_rows<T>(args.dv));

  const Tensor& pieces = args.seqs.pieces(device, kRows);
  launch(kName, rows_kernel<T, kP, kRowsM, kRowsN>, dim3(blocks_of(pieces.size(0), args.sizes.heads)), kTileThreads,
         {.shared = sizeof(T) * kP * (2 * kRows + 4 * kRowsN)}, stream, q, k, v, dout, tables.places,
         elements<const int64_t>(pieces), pieces.size(0), lse, elements<const float>(sums), rows<T>(args.dq));
}

template <class T>
void backward_of(const AttentionBackward& args, Stream stream) {
  const int64_t p = args.sizes.p;
  if (p <= 32) return backward<T, 32, 2, 32, 2, 32>(args, stream);
  if (p <= 64) return backward<T, 64, 2, 32, 2, 32>(args, stream);
  require(p <= kMostBackwardWidth, "attention backward: heads of ", p, " channels, expected at most ",
          kMostBackwardWidth);
  backward<T, 128, 1, 64, 1, 32>(args, stream);
}

}  // namespace

Tensor attention_shared_sums(const AttentionBackward& args, const AttentionPlaces& places, Stream stream) {
  const Tensor sums = Tensor::empty(args.lse.shape(), DType::f32, args.q.device());
  with_element(args.q.dtype(), "attention backward", [&]<class T>(T) {
    launch("attention backward", shared_kernel<T>,
           dim3(blocks_of(divide_up(args.q.size(0) * args.sizes.heads, kTileWarps), 1)), kTileThreads, stream,
           rows<const T>(args.out), rows<const T>(args.dout), places, elements<float>(sums));
  });
  return sums;
}

void attention_tile_backward(const AttentionBackward& args, Stream stream) {
  args.q.dtype() == DType::bf16 ? backward_of<bf16>(args, stream) : backward_of<f16>(args, stream);
}

}  // namespace ssm::cuda
