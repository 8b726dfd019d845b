// attention on a GPU in f32 arithmetic, for f32 and for widths that tensor cores do not take. A block is 32 rows and 8
// warps; a warp has 4 of the rows, a lane of it one of 32 keys while scores are made, then one of 32 channels.
// Equations: attention.h, README.md.
#include <cmath>
#include <utility>

#include "ops/attention/attention_cuda.cuh"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

constexpr int kTile = 32, kWarps = 8, kOwn = kTile / kWarps, kMostWidth = 256;

struct Stats {                     // of one row and head
  float largest, inverse, shared;  // of the scores; 1 / sum of exponentials; sum_k P_ik dP_ik of (6)
};

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// `count` rows of p channels into shared memory, zeros behind them.
template <class T>
__device__ void load_tile(float* to, int pitch, const T* from, int64_t stride, int64_t count, int p) {
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < kTile; row += kWarps)
    for (int c = static_cast<int>(threadIdx.x) % kWarp; c < p; c += kWarp)
      to[row * pitch + c] = row < count ? to_float(from[row * stride + c]) : 0;
}

// In one order wherever it is made, so that the two kernels of the backward have the same P and dP.
__device__ __forceinline__ float dot(const float* a, const float* b, int p) {
  float sum = 0;
  for (int c = 0; c < p; ++c) sum = fmaf(a[c], b[c], sum);
  return sum;
}

// Where a block is: rows `row` .. of sequence s, the first of which has the keys up to `last`.
struct Place {
  int64_t s, row, rows, last, head;
  __device__ Place(const int64_t* pieces, int64_t count, const AttentionPlaces& places) {
    // The last pieces, which see the most keys, go first.
    const int64_t* piece = pieces + (count - 1 - blockIdx.x / places.heads) * 4;
    head = blockIdx.x % places.heads;
    s = piece[0], row = piece[1], rows = piece[2];
    last = places.keys_before(s) + row - places.offsets[s];
  }
};

// Without kGradient out of (3); with it dq of (7) and the stats of each row.
template <class T, int kParts, bool kGradient>
__global__ void __launch_bounds__(kWarps* kWarp)
    rows_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, AttentionPlaces places, const int64_t* pieces,
                int64_t count, Rows<T> out, Rows<const T> dout, Stats* stats) {
  extern __shared__ float shared[];
  const int p = static_cast<int>(places.p), pitch = p | 1;
  float *Q = shared, *K = Q + kTile * pitch, *V = K + kTile * pitch, *G = V + kTile * pitch;
  const Place at(pieces, count, places);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, first = static_cast<int>(threadIdx.x) / kWarp * kOwn;
  const int64_t columns = at.head * p, keys = at.last + at.rows, column = places.group_of(at.head) * p;
  const float slope = places.slopes ? places.slopes[at.head] : 0;
  load_tile(Q, pitch, q[at.row] + columns, q.stride, at.rows, p);
  if constexpr (kGradient) load_tile(G, pitch, dout[at.row] + columns, dout.stride, at.rows, p);

  float largest[kOwn], sum[kOwn] = {}, weighted[kOwn] = {}, result[kOwn][kParts] = {};
  for (int r = 0; r < kOwn; ++r) largest[r] = -INFINITY;
  const auto score = [&](int r, int64_t j) {
    const int64_t last = at.last + first + r;
    if (j > last) return -INFINITY;
    return places.scale * dot(Q + (first + r) * pitch, K + lane * pitch, p) + slope * static_cast<float>(j - last);
  };
  const auto load_keys = [&](int64_t begin) {
    __syncthreads();  // nobody reads the tile before any more
    load_tile(K, pitch, places.key(k, at.s, begin) + column, k.stride, keys - begin, p);
    load_tile(V, pitch, places.key(v, at.s, begin) + column, v.stride, keys - begin, p);
    __syncthreads();
  };

  // The softmax, and out or the sum of (6).
  for (int64_t begin = 0; begin < keys; begin += kTile) {
    load_keys(begin);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const int64_t seen = at.last + first + r + 1 - begin;
      if (seen <= 0) continue;  // the first tile is seen by all rows, so `largest` is finite from there on
      const float own = score(r, begin + lane), most = fmaxf(largest[r], warp_max(own));
      const float before = expf(largest[r] - most), e = expf(own - most);
      largest[r] = most;
      sum[r] = sum[r] * before + warp_sum(e);
      if constexpr (kGradient) {
        const float dP = dot(G + (first + r) * pitch, V + lane * pitch, p);  // (5)
        weighted[r] = weighted[r] * before + warp_sum(lane < seen ? e * dP : 0);
      } else {
#pragma unroll
        for (int part = 0; part < kParts; ++part) result[r][part] *= before;
        for (int j = 0; j < kTile && j < seen; ++j) {
          const float weight = __shfl_sync(0xffffffffu, e, j);
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            if (const int c = part * kWarp + lane; c < p)
              result[r][part] = fmaf(weight, V[j * pitch + c], result[r][part]);
        }
      }
    }
  }
  float inverse[kOwn];
#pragma unroll
  for (int r = 0; r < kOwn; ++r) inverse[r] = 1 / sum[r];

  if constexpr (kGradient) {
    for (int64_t begin = 0; begin < keys; begin += kTile) {
      load_keys(begin);
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        const int64_t seen = at.last + first + r + 1 - begin;
        if (seen <= 0) continue;
        const float P = expf(score(r, begin + lane) - largest[r]) * inverse[r];
        const float dP = dot(G + (first + r) * pitch, V + lane * pitch, p);
        const float dS = places.scale * P * (dP - weighted[r] * inverse[r]);  // (6)
        for (int j = 0; j < kTile && j < seen; ++j) {                         // (7)
          const float weight = __shfl_sync(0xffffffffu, dS, j);
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            if (const int c = part * kWarp + lane; c < p)
              result[r][part] = fmaf(weight, K[j * pitch + c], result[r][part]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    if (first + r >= at.rows) continue;
    const int64_t row = at.row + first + r;
    if constexpr (kGradient)
      if (lane == 0) stats[at.head * places.tokens + row] = {largest[r], inverse[r], weighted[r] * inverse[r]};
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      if (const int c = part * kWarp + lane; c < p)
        out[row][columns + c] = from_float<T>(kGradient ? result[r][part] : result[r][part] * inverse[r]);
  }
}

// dK and dV of (7) of a tile of keys and a group: nobody else adds to them, and it takes heads and rows in order.
template <class T, int kParts>
__global__ void __launch_bounds__(kWarps* kWarp)
    keys_kernel(Rows<const T> q, KeyRows<const T> k, KeyRows<const T> v, AttentionPlaces places, const int64_t* pieces,
                Rows<const T> dout, const Stats* stats, KeyRows<T> dk, KeyRows<T> dv) {
  extern __shared__ float shared[];
  const int p = static_cast<int>(places.p), pitch = p | 1;
  float *Q = shared, *K = Q + kTile * pitch, *V = K + kTile * pitch, *G = V + kTile * pitch;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, first = static_cast<int>(threadIdx.x) / kWarp * kOwn;
  const int64_t *piece = pieces + blockIdx.x / places.groups * 4, group = blockIdx.x % places.groups;
  const int64_t s = piece[0], begin = piece[3] * kTile, keys = piece[2];
  const int64_t before = places.keys_before(s), rows = places.length(s), each = places.heads / places.groups;
  load_tile(K, pitch, places.key(k, s, begin) + group * p, k.stride, keys, p);
  load_tile(V, pitch, places.key(v, s, begin) + group * p, v.stride, keys, p);
  float result_k[kOwn][kParts] = {}, result_v[kOwn][kParts] = {};
  for (int64_t head = group * each; head < (group + 1) * each; ++head) {
    const float slope = places.slopes ? places.slopes[head] : 0;
    for (int64_t row = max(begin - before, int64_t{0}) / kTile * kTile; row < rows; row += kTile) {
      const int64_t here = places.offsets[s] + row, last = before + row + lane;
      __syncthreads();
      load_tile(Q, pitch, q[here] + head * p, q.stride, rows - row, p);
      load_tile(G, pitch, dout[here] + head * p, dout.stride, rows - row, p);
      __syncthreads();
      const Stats own = row + lane < rows ? stats[head * places.tokens + here + lane] : Stats{};
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {
        const int64_t j = begin + first + r;
        float P = 0, dS = 0;
        if (j <= last && row + lane < rows) {
          const float score =
              places.scale * dot(Q + lane * pitch, K + (first + r) * pitch, p) + slope * static_cast<float>(j - last);
          P = expf(score - own.largest) * own.inverse;
          dS = places.scale * P * (dot(G + lane * pitch, V + (first + r) * pitch, p) - own.shared);
        }
        for (int i = 0; i < kTile; ++i) {
          const float weight_v = __shfl_sync(0xffffffffu, P, i), weight_k = __shfl_sync(0xffffffffu, dS, i);
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            if (const int c = part * kWarp + lane; c < p) {
              result_v[r][part] = fmaf(weight_v, G[i * pitch + c], result_v[r][part]);
              result_k[r][part] = fmaf(weight_k, Q[i * pitch + c], result_k[r][part]);
            }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    if (first + r >= keys) continue;
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      if (const int c = part * kWarp + lane; c < p) {
        T* const to_k = places.key(dk, s, begin + first + r) + group * p + c;
        T* const to_v = places.key(dv, s, begin + first + r) + group * p + c;
        *to_k = from_float<T>(to_float(*to_k) + result_k[r][part]);
        *to_v = from_float<T>(to_float(*to_v) + result_v[r][part]);
      }
  }
}

// f(parts): how many channels a lane has.
template <class F>
void with_parts(int64_t p, const F& f) {
  require(p <= kMostWidth, "attention: heads of ", p, " channels; on a GPU at most ", kMostWidth, "; use --device cpu");
  if (p <= 32) return f(std::integral_constant<int, 1>());
  if (p <= 64) return f(std::integral_constant<int, 2>());
  if (p <= 128) return f(std::integral_constant<int, 4>());
  f(std::integral_constant<int, 8>());
}

unsigned blocks_of(int64_t pieces, int64_t heads) {
  require(pieces * heads < (int64_t{1} << 31), "attention: ", pieces, " tiles and ", heads,
          " heads in one call; pass fewer sequences");
  return static_cast<unsigned>(pieces * heads);
}

size_t shared_bytes(int64_t p, int tiles) { return static_cast<size_t>(tiles * kTile * (p | 1)) * sizeof(float); }

}  // namespace

void attention_plain_forward(const AttentionForward& args, Stream stream) {
  const AttentionTables tables(args.sizes, args.seqs, args.q.size(0), args.k);
  const Tensor& pieces = args.seqs.pieces(args.q.device(), kTile);
  with_element(args.q.dtype(), "attention", [&]<class T>(T) {
    with_parts(args.sizes.p, [&](auto parts) {
      launch("attention", rows_kernel<T, decltype(parts)::value, false>,
             dim3(blocks_of(pieces.size(0), args.sizes.heads)), kWarps * kWarp,
             {.shared = shared_bytes(args.sizes.p, 3)}, stream, rows<const T>(args.q), key_rows<const T>(args.k),
             key_rows<const T>(args.v), tables.places, elements<const int64_t>(pieces), pieces.size(0),
             rows<T>(args.out), Rows<const T>(), nullptr);
    });
  });
}

void attention_plain_backward(const AttentionBackward& args, Stream stream) {
  constexpr const char* kName = "attention backward";
  const Device& device = args.q.device();
  const AttentionTables tables(args.sizes, args.seqs, args.q.size(0), args.k);
  const Tensor& pieces = args.seqs.pieces(device, kTile);
  const Tensor of_keys = key_pieces(args.sizes, args.seqs, kTile, device);
  const Tensor stats = Tensor::empty({args.sizes.heads, args.q.size(0), 3}, DType::f32, device);
  auto* const all_stats = reinterpret_cast<Stats*>(elements<float>(stats));
  with_element(args.q.dtype(), kName, [&]<class T>(T) {
    with_parts(args.sizes.p, [&](auto parts) {
      constexpr int kParts = decltype(parts)::value;
      const LaunchOptions options{.shared = shared_bytes(args.sizes.p, 4)};
      launch(kName, rows_kernel<T, kParts, true>, dim3(blocks_of(pieces.size(0), args.sizes.heads)), kWarps * kWarp,
             options, stream, rows<const T>(args.q), key_rows<const T>(args.k), key_rows<const T>(args.v),
             tables.places, elements<const int64_t>(pieces), pieces.size(0), rows<T>(args.dq), rows<const T>(args.dout),
             all_stats);
      launch(kName, keys_kernel<T, kParts>, dim3(blocks_of(of_keys.size(0), args.sizes.groups)), kWarps * kWarp,
             options, stream, rows<const T>(args.q), key_rows<const T>(args.k), key_rows<const T>(args.v),
             tables.places, elements<const int64_t>(of_keys), rows<const T>(args.dout), all_stats, key_rows<T>(args.dk),
             key_rows<T>(args.dv));
    });
  });
}

}  // namespace ssm::cuda
