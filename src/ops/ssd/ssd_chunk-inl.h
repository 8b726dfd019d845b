// What the forward and the backward of ssd share on the CPU: matrix products whose operands fit the caches, and the
// parts of one chunk of tokens: its steps, its decays, its rows of B, C and x side by side.
// Included once per target from inside HWY_NAMESPACE (see foreach_target.h of Highway).

#if defined(SSM_OPS_SSD_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_SSD_CHUNK_INL_H_
#undef SSM_OPS_SSD_CHUNK_INL_H_
#else
#define SSM_OPS_SSD_CHUNK_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "ops/simd_math-inl.h"
#include "ops/ssd/ssd.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;

// Tokens of a chunk. Products within a chunk grow with it, passes over the states shrink; README.md has the
// measurement.
constexpr int64_t kChunk = 32;
// A tile of a product, rows by vectors: its sums stay in registers and hide the latency of a multiply-add.
constexpr int kTileRows = HWY_TARGET == HWY_AVX3 ? 8 : 4, kTileVectors = 2;

template <int kValue>
using Int = std::integral_constant<int, kValue>;

// Memory handed out piece by piece, each on a cache line of its own. From null it only counts.
class Scratch {
 public:
  explicit Scratch(float* from) : from_(from) {}
  float* take(int64_t count) {
    float* const piece = from_ ? from_ + taken_ : nullptr;
    taken_ += (count + 15) / 16 * 16;
    return piece;
  }
  int64_t taken() const { return taken_; }

 private:
  float* from_;
  int64_t taken_ = 0;
};

inline int64_t round_up(int64_t count) {  // to whole vectors
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  return (count + lanes - 1) / lanes * lanes;
}

// Calls body(rows, vectors, i, j) for tiles that cover the rows [first, last) and the columns [0, columns), a multiple
// of the vector's length; `rows` and `vectors` are constants. The columns of a tile stay in the first-level cache while
// the rows go by.
template <class Body>
HWY_INLINE void for_tiles(int64_t first, int64_t last, int64_t columns, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  const auto all_rows = [&](auto vectors, int64_t j) {
    int64_t i = first;
    for (; i + kTileRows <= last; i += kTileRows) body(Int<kTileRows>(), vectors, i, j);
    for (; i < last; ++i) body(Int<1>(), vectors, i, j);
  };
  int64_t j = 0;
  for (; j + kTileVectors * lanes <= columns; j += kTileVectors * lanes) all_rows(Int<kTileVectors>(), j);
  for (; j < columns; j += lanes) all_rows(Int<1>(), j);
}

template <int R, int V>
struct Sums {
  Vec at[R][V];
};

template <int R, int V>
HWY_INLINE void clear(Sums<R, V>& sums) {
  for (auto& row : sums.at)
    for (auto& sum : row) sum = hn::Zero(Tag());
}

// sums_rv += sum over k < terms of a[r * row + k * step] * b[k * stride + v-th vector].
template <int R, int V>
HWY_INLINE void accumulate(const float* HWY_RESTRICT a, int64_t row, int64_t step, const float* HWY_RESTRICT b,
                           int64_t stride, int64_t terms, Sums<R, V>& sums) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Sums<R, V> own = sums;  // a local that only this loop touches stays in registers, whatever the caller does with it
  for (int64_t k = 0; k < terms; ++k) {
    Vec columns[V];
    for (int v = 0; v < V; ++v) columns[v] = hn::LoadU(d, b + k * stride + v * lanes);
    for (int r = 0; r < R; ++r) {
      const auto factor = hn::Set(d, a[r * row + k * step]);
      for (int v = 0; v < V; ++v) own.at[r][v] = hn::MulAdd(factor, columns[v], own.at[r][v]);
    }
  }
  sums = own;
}

// What the kernels read of the arguments of either pass.
struct Inputs {
  Matrix<float> x, dt, B, C;
  const float *A_log, *D, *dt_bias;
  SsdSizes sizes;
  float dt_min, dt_max;
  bool D_of_channels;  // D (m p), else (m)
  int64_t pp, nn;      // p and n in whole vectors: the strides of what is kept in scratch

  explicit Inputs(const auto& args)
      : x(args.x.template matrix<float>()),
        dt(args.dt.template matrix<float>()),
        B(args.B.template matrix<float>()),
        C(args.C.template matrix<float>()),
        A_log(args.A_log.template data<float>()),
        D(args.D.template data<float>()),
        dt_bias(args.dt_bias.template data<float>()),
        sizes(args.sizes),
        dt_min(static_cast<float>(args.dt_min)),
        dt_max(static_cast<float>(args.dt_max)),
        D_of_channels(args.D && args.D.count() != args.sizes.m),
        pp(round_up(args.sizes.p)),
        nn(round_up(args.sizes.n)) {}
  const float* x_of(int64_t t, int64_t head) const { return x[t] + head * sizes.p; }
  // D of a head's channels from c on.
  Vec D_at(int64_t head, int64_t c) const {
    const Tag d;
    if (!D) return hn::Zero(d);
    return D_of_channels ? load_up_to(d, D + head * sizes.p + c, static_cast<size_t>(sizes.p - c))
                         : hn::Set(d, D[head]);
  }
};

// Tokens [begin, begin + count) of one sequence, at most kChunk.
struct Chunk {
  int64_t begin, count;
};

// dt with its bias; zeros up to whole vectors.
inline void load_raw_steps(const Inputs& in, int64_t head, const Chunk& chunk, float* raw) {
  const float bias = in.dt_bias ? in.dt_bias[head] : 0.0f;
  for (int64_t i = 0; i < chunk.count; ++i) raw[i] = in.dt[chunk.begin + i][head] + bias;
  std::fill(raw + chunk.count, raw + round_up(chunk.count), 0.0f);
}

// (1), and a of (2). Both arrays have room for whole vectors.
inline void load_steps(const Inputs& in, int64_t head, const Chunk& chunk, float* delta, float* decay) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  load_raw_steps(in, head, chunk, delta);
  const auto rate = hn::Set(d, -std::exp(in.A_log[head]) * kLog2E);
  const auto low = hn::Set(d, in.dt_min), high = hn::Set(d, in.dt_max);
  for (int64_t i = 0; i < chunk.count; i += lanes) {
    auto step = softplus(d, hn::LoadU(d, delta + i));
    step = hn::IfThenElse(hn::Lt(step, low), low, step);  // compared so that NaN stays
    step = hn::IfThenElse(hn::Gt(step, high), high, step);
    hn::StoreU(step, d, delta + i);
    hn::StoreU(exp2_nonpositive(d, hn::Mul(step, rate)), d, decay + i);
  }
}

// rows (count, pp): one head's channels of a matrix (t, m p), times `factors` of the tokens unless null; zeros behind
// the p-th.
inline void load_rows(const Inputs& in, const Matrix<float>& from, int64_t head, const Chunk& chunk,
                      const float* factors, float* rows) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < chunk.count; ++i) {
    const float* row = from[chunk.begin + i] + head * in.sizes.p;
    const auto factor = hn::Set(d, factors ? factors[i] : 1.0f);
    for (int64_t c = 0; c < in.pp; c += lanes)
      hn::StoreU(hn::Mul(factor, load_up_to(d, row + c, static_cast<size_t>(in.sizes.p - c))), d, rows + i * in.pp + c);
  }
}

// to (count, nn) = the chunk's rows of one group of B or C, which lie far apart in memory.
inline void load_group(const Inputs& in, const Matrix<float>& from, int64_t group, const Chunk& chunk, float* to) {
  for (int64_t i = 0; i < chunk.count; ++i, to += in.nn) {
    std::copy_n(from[chunk.begin + i] + group * in.sizes.n, in.sizes.n, to);
    std::fill(to + in.sizes.n, to + in.nn, 0.0f);
  }
}

// to (columns, to_stride) = from (rows, from_stride)^T; zeros behind the rows-th of a row, up to whole vectors.
inline void transpose(const float* HWY_RESTRICT from, int64_t from_stride, int64_t rows, int64_t columns,
                      float* HWY_RESTRICT to, int64_t to_stride) {
  constexpr int64_t kBlock = 16;  // columns: as many lines of `to` are written side by side
  for (int64_t j = 0; j < columns; j += kBlock)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = j; k < std::min(columns, j + kBlock); ++k) to[k * to_stride + i] = from[i * from_stride + k];
  for (int64_t k = 0; k < columns; ++k) std::fill(to + k * to_stride + rows, to + k * to_stride + round_up(rows), 0.0f);
}

// products (count, kChunk) = a b, a (count, stride) of `terms` columns, b (terms, kChunk). Right on and below the
// diagonal; the rest is not used.
inline void multiply_lower(const float* a, int64_t stride, const float* b, int64_t terms, int64_t count,
                           float* products) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for_tiles(0, count, round_up(count), [&](auto rows, auto vectors, int64_t i, int64_t j) HWY_ATTR {
    if (i + rows <= j) return;
    Sums<rows, vectors> sums;
    clear(sums);
    accumulate(a + i * stride, stride, 1, b + j, kChunk, terms, sums);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) hn::StoreU(sums.at[r][v], d, products + (i + r) * kChunk + j + v * lanes);
  });
}

// Decays are multiplied up token by token, (6): one exponential a token, and none of a difference of sums, whose
// rounding would be that of the sums. Products below this are zero: they add nothing, and denormal numbers are slow.
constexpr float kNoDecay = 0x1p-120f;

// Calls row(i, j, L) for every token i and vector of tokens j <= i, j a multiple of the vector's length: L is
// L_ij of (5), zero above the diagonal. Afterwards `from_start` (count) holds e_i and `to_end` (count) t_j.
template <class Row>
HWY_INLINE void for_decays(int64_t count, const float* decay, float* from_start, float* to_end, const Row& row) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto least = hn::Set(d, kNoDecay), none = hn::Zero(d), one = hn::Set(d, 1.0f);
  std::fill_n(to_end, round_up(count), 0.0f);
  float product = 1;
  for (int64_t i = 0; i < count; ++i) {
    product *= decay[i];
    if (product < kNoDecay) product = 0;
    from_start[i] = product;
    const auto a = hn::Set(d, decay[i]);
    for (int64_t j = 0; j <= i; j += lanes) {
      auto L = hn::Mul(a, hn::LoadU(d, to_end + j));
      L = hn::IfThenElse(hn::Lt(L, least), none, L);
      if (j + lanes > i) {  // the diagonal, and nothing beyond it even if `a` is NaN
        const auto tokens = hn::Iota(di, static_cast<int32_t>(j)), now = hn::Set(di, static_cast<int32_t>(i));
        L = hn::IfThenElse(hn::RebindMask(d, hn::Eq(tokens, now)), one, L);
        L = hn::IfThenElse(hn::RebindMask(d, hn::Gt(tokens, now)), none, L);
      }
      hn::StoreU(L, d, to_end + j);
      row(i, j, L);
    }
  }
}

// to_r += sum over k < terms_r of M[r][k] rows[k] for kRows rows, terms_r = first + r + 1: a tile of a product with a
// lower triangle. Nothing above the diagonal is touched, where 0 times infinity would be in wait.
template <int R, int V>
HWY_INLINE void accumulate_lower(const float* M, const float* rows, int64_t stride, int64_t first, Sums<R, V>& sums) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  accumulate(M, kChunk, 1, rows, stride, first, sums);
  for (int k = 0; k < R; ++k) {
    Vec columns[V];
    for (int v = 0; v < V; ++v) columns[v] = hn::LoadU(d, rows + (first + k) * stride + v * lanes);
    for (int r = k; r < R; ++r) {
      const auto factor = hn::Set(d, M[r * kChunk + first + k]);
      for (int v = 0; v < V; ++v) sums.at[r][v] = hn::MulAdd(factor, columns[v], sums.at[r][v]);
    }
  }
}

// The same with the triangle transposed: sums_r += sum over r <= k < count of M[k][r] rows[k], M's first row and column
// being those of the tile.
template <int R, int V>
HWY_INLINE void accumulate_upper(const float* M, const float* rows, int64_t stride, int64_t count, Sums<R, V>& sums) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int k = 0; k < R; ++k) {
    Vec columns[V];
    for (int v = 0; v < V; ++v) columns[v] = hn::LoadU(d, rows + k * stride + v * lanes);
    for (int r = 0; r <= k; ++r) {
      const auto factor = hn::Set(d, M[k * kChunk + r]);
      for (int v = 0; v < V; ++v) sums.at[r][v] = hn::MulAdd(factor, columns[v], sums.at[r][v]);
    }
  }
  accumulate(M + R * kChunk, 1, kChunk, rows + R * stride, stride, count - R, sums);
}

// `to` (n, pp) = decay `from` + a^T rows, with a (count, nn), rows (count, pp): (8) and (14).
inline void advance_state(const Inputs& in, const float* a, const float* rows, int64_t count, float decay,
                          const float* from, float* to) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto kept = hn::Set(d, decay);
  for_tiles(0, in.sizes.n, in.pp, [&](auto tile_rows, auto vectors, int64_t i, int64_t j) HWY_ATTR {
    Sums<tile_rows, vectors> sums;
    for (int r = 0; r < tile_rows; ++r)
      for (int v = 0; v < vectors; ++v)
        sums.at[r][v] = hn::Mul(kept, hn::LoadU(d, from + (i + r) * in.pp + j + v * lanes));
    accumulate(a + i, 1, in.nn, rows + j, in.pp, count, sums);
    for (int r = 0; r < tile_rows; ++r)
      for (int v = 0; v < vectors; ++v) hn::StoreU(sums.at[r][v], d, to + (i + r) * in.pp + j + v * lanes);
  });
}

// rows_i *= factors_i
inline void scale_rows(const float* factors, int64_t count, int64_t stride, float* rows) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < stride; c += lanes)
      hn::StoreU(hn::Mul(hn::Set(d, factors[i]), hn::LoadU(d, rows + i * stride + c)), d, rows + i * stride + c);
}

// A state between its tensor (n, p) and scratch (n, pp).
inline void load_state(const Inputs& in, const float* from, float* S) {
  for (int64_t k = 0; k < in.sizes.n; ++k, S += in.pp) {
    if (from)
      std::copy_n(from + k * in.sizes.p, in.sizes.p, S);
    else
      std::fill_n(S, in.sizes.p, 0.0f);
    std::fill(S + in.sizes.p, S + in.pp, 0.0f);
  }
}

inline void store_state(const Inputs& in, const float* S, float* to) {
  for (int64_t k = 0; k < in.sizes.n; ++k) std::copy_n(S + k * in.pp, in.sizes.p, to + k * in.sizes.p);
}

// Blocks of heads, each within a group: what tasks are made of.
struct HeadBlocks {
  SsdSizes sizes;
  int64_t heads;  // the most in a block
  int64_t blocks_of_group() const { return (sizes.m / sizes.g + heads - 1) / heads; }
  int64_t count() const { return sizes.g * blocks_of_group(); }
  int64_t group(int64_t block) const { return block / blocks_of_group(); }
  int64_t begin(int64_t block) const { return group(block) * (sizes.m / sizes.g) + block % blocks_of_group() * heads; }
  int64_t end(int64_t block) const { return std::min(begin(block) + heads, (group(block) + 1) * (sizes.m / sizes.g)); }
};

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
