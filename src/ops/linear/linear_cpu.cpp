// linear on the CPU. Few rows: each weight is read once and multiplied into all of them; that traffic is the cost of
// decoding, so the kernel only has to keep up with memory. Many rows: GEMM, after widening bf16 and f16 weights block
// by block.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/linear_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "ops/linear/gemm.h"
#include "ops/linear/linear.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Up to here each weight row is multiplied into all rows as it streams by. Beyond, arithmetic is the limit, and tiles
// of kTileX rows of x by kTileWeights of the weight load each operand once for several products: as many as fill the
// registers.
constexpr int64_t kStreamRows = 4;
constexpr int kTileX = 4;
constexpr int kTileWeights = HWY_TARGET == HWY_AVX3 ? 4 : 2;
// Columns of a tile's pass: 4 KiB of each row, so that a tile's weights stay in the first-level cache for all rows of
// x.
constexpr int64_t kTileColumns = 1024;
// Weight rows of the smallest task: 8 x 768 x 4 bytes = 24 KiB, some 2 us of memory traffic.
constexpr int64_t kFewestRows = 8;
// Weight rows widened by one task.
constexpr int64_t kTaskRows = 64;

template <class D>
HWY_INLINE hn::Vec<D> load_weight(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load_weight(D d, const BF16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

template <class D>
HWY_INLINE hn::Vec<D> load_weight(D d, const F16* from) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
}

// The first `count` elements, the other lanes 0.
template <class D, class W>
HWY_INLINE hn::Vec<D> load_weight_up_to(D d, const W* from, size_t count) {
  HWY_ALIGN W lanes[hn::MaxLanes(d)] = {};
  std::copy_n(from, count, lanes);
  return load_weight(d, lanes);
}

// The order of a sum, here and in the tiles, depends on the number of columns alone, so a row's result is the same in
// every batch: vectors of products one after the other, then their lanes: halves onto each other down to four, and of
// four (0 + 2) + (1 + 3).
#if HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
template <class D>
HWY_INLINE float sum_lanes(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}
template <int kCount, class D>
HWY_INLINE void sum_lanes_of(D d, const hn::Vec<D> (&v)[kCount], float (&sums)[kCount]) {
  for (int i = 0; i < kCount; ++i) sums[i] = sum_lanes(d, v[i]);
}
#else
using Four = hn::Full128<float>;

template <class D>
HWY_INLINE hn::Vec<Four> fold(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(d) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return fold(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// The four sums as one vector.
HWY_INLINE hn::Vec<Four> sums_of_four(hn::Vec<Four> a, hn::Vec<Four> b, hn::Vec<Four> c, hn::Vec<Four> e) {
  const Four d;
  const hn::RepartitionToWide<Four> wide;
  const auto ab = hn::BitCast(wide, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce = hn::BitCast(wide, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, ab, ce)), hn::BitCast(d, hn::InterleaveUpper(wide, ab, ce)));
}
template <class D>
HWY_INLINE float sum_lanes(D d, hn::Vec<D> v) {
  const auto four = fold(d, v);
  return hn::GetLane(sums_of_four(four, four, four, four));
}
template <int kCount, class D>
HWY_INLINE void sum_lanes_of(D d, const hn::Vec<D> (&v)[kCount], float (&sums)[kCount]) {
  static_assert(kCount == 2 || kCount == 4);
  const auto a = fold(d, v[0]), b = fold(d, v[1]);
  HWY_ALIGN float lanes[4];
  hn::Store(sums_of_four(a, b, fold(d, v[kCount - 2]), fold(d, v[kCount - 1])), Four(), lanes);
  std::copy_n(lanes, kCount, sums);
}
#endif

// y[t][o] for kRows rows of x and one row of the weight. The weight is one stream from front to back: processors fetch
// that ahead better than four rows side by side, or than prefetch instructions (30 GB/s a core; with them 17 to 28).
template <int kRows, class W>
void dot_rows(const Matrix<float>& x, const W* weight, float bias, const Matrix<float>& y, int64_t t, int64_t o) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= x.columns; i += lanes) {
    const auto w = load_weight(d, weight + i);
    for (int r = 0; r < kRows; ++r) sums[r] = hn::MulAdd(w, hn::LoadU(d, x[t + r] + i), sums[r]);
  }
  if (i < x.columns) {
    const auto count = static_cast<size_t>(x.columns - i);
    const auto w = load_weight_up_to(d, weight + i, count);
    for (int r = 0; r < kRows; ++r) sums[r] = hn::MulAdd(w, load_up_to(d, x[t + r] + i, count), sums[r]);
  }
  for (int r = 0; r < kRows; ++r) y[t + r][o] = sum_lanes(d, sums[r]) + bias;
}

// One pass of a tile: columns [from, to) of its rows. While it works in the cache it fetches what comes next, so that
// memory is never waited for: a line of two rows of the next pass's weights (or twice the same) a vector.
template <class W>
struct Pass {
  int64_t from, to;
  bool first, last;
  const W *ahead, *ahead_too;  // from the next pass's first column
};

// kX rows of x from t on, times kW rows of the weight from o on. Between passes the sums, kW vectors a row of x, wait
// in `sums`; after the last one they are results.
template <int kX, int kW, class W>
HWY_INLINE void multiply_tile(const Matrix<float>& x, const Matrix<W>& weight, const float* bias,
                              const Matrix<float>& y, int64_t t, int64_t o, const Pass<W>& pass, float* sums) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> tile[kX][kW];
  for (int r = 0; r < kX; ++r)
    for (int j = 0; j < kW; ++j) tile[r][j] = pass.first ? hn::Zero(d) : hn::LoadU(d, sums + (r * kW + j) * lanes);
  int64_t i = pass.from;
  for (; i + lanes <= pass.to; i += lanes) {
    hwy::Prefetch(pass.ahead + (i - pass.from));
    hwy::Prefetch(pass.ahead_too + (i - pass.from));
    hn::Vec<decltype(d)> w[kW];
    for (int j = 0; j < kW; ++j) w[j] = load_weight(d, weight[o + j] + i);
    for (int r = 0; r < kX; ++r) {
      const auto v = hn::LoadU(d, x[t + r] + i);
      for (int j = 0; j < kW; ++j) tile[r][j] = hn::MulAdd(w[j], v, tile[r][j]);
    }
  }
  if (i < pass.to) {  // in the last pass alone: the others are whole vectors
    const auto count = static_cast<size_t>(pass.to - i);
    for (int j = 0; j < kW; ++j) {
      const auto w = load_weight_up_to(d, weight[o + j] + i, count);
      for (int r = 0; r < kX; ++r) tile[r][j] = hn::MulAdd(w, load_up_to(d, x[t + r] + i, count), tile[r][j]);
    }
  }
  for (int r = 0; r < kX; ++r) {
    if (pass.last) {
      float results[kW];
      sum_lanes_of<kW>(d, tile[r], results);
      for (int j = 0; j < kW; ++j) y[t + r][o + j] = results[j] + (bias ? bias[o + j] : 0.0f);
    } else {
      for (int j = 0; j < kW; ++j) hn::StoreU(tile[r][j], d, sums + (r * kW + j) * lanes);
    }
  }
}

// y[t][o] for all rows t of x and kTileWeights rows of the weight from o on. `sums`: x.rows * kTileWeights vectors.
template <class W>
void dot_tiles(const Matrix<float>& x, const Matrix<W>& weight, const float* bias, const Matrix<float>& y, int64_t o,
               float* sums) {
  const int64_t row = kTileWeights * static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));  // of `sums`
  const int64_t columns = x.columns, tiles = (x.rows + kTileX - 1) / kTileX;
  for (int64_t from = 0; from < columns; from += kTileColumns) {
    Pass<W> pass{from, std::min(columns, from + kTileColumns), from == 0, from + kTileColumns >= columns, {}, {}};
    const int64_t next_o = pass.last ? std::min(o + kTileWeights, weight.rows - kTileWeights) : o;
    const int64_t next_from = pass.last ? 0 : pass.to;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t share = tile * kTileWeights / tiles, next_share = (tile + 1) * kTileWeights / tiles;
      pass.ahead = weight[next_o + share] + next_from;
      pass.ahead_too = weight[next_o + std::max(share, next_share - 1)] + next_from;
      const int64_t t = tile * kTileX;
      float* at = sums + t * row;
      switch (std::min<int64_t>(kTileX, x.rows - t)) {
        case 1: multiply_tile<1, kTileWeights>(x, weight, bias, y, t, o, pass, at); break;
        case 2: multiply_tile<2, kTileWeights>(x, weight, bias, y, t, o, pass, at); break;
        case 3: multiply_tile<3, kTileWeights>(x, weight, bias, y, t, o, pass, at); break;
        default: multiply_tile<kTileX, kTileWeights>(x, weight, bias, y, t, o, pass, at); break;
      }
    }
  }
}

template <class W>
void dot_few(const Matrix<float>& x, const W* weight, float bias, const Matrix<float>& y, int64_t o) {
  for (int64_t t = 0; t < x.rows; t += kStreamRows) {
    switch (std::min(kStreamRows, x.rows - t)) {
      case 1: dot_rows<1>(x, weight, bias, y, t, o); break;
      case 2: dot_rows<2>(x, weight, bias, y, t, o); break;
      case 3: dot_rows<3>(x, weight, bias, y, t, o); break;
      default: dot_rows<4>(x, weight, bias, y, t, o); break;
    }
  }
}

template <class W>
void few_rows(const LinearForward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), y = args.y.matrix<float>();
  const auto weight = args.weight.matrix<W>();
  const float* bias = args.bias.data<float>();
  const int64_t out = weight.rows;
  // Long stretches of memory for each thread, then ever shorter ones, so that all end together: each task is a share
  // of what is left. Rows are independent, so here the number of threads may decide.
  std::vector<int64_t> ends;
  for (int64_t end = 0; end < out;) {
    end += std::min(out - end, std::max<int64_t>(kFewestRows, (out - end) / (2 * threads.count())));
    ends.push_back(end);
  }
  const auto lanes = static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<float>()));
  const Tensor scratch = Tensor::empty({threads.count(), x.rows * kTileWeights * lanes}, DType::f32);
  threads.parallel(static_cast<int64_t>(ends.size()), [&](int64_t task, int worker) {
    const int64_t end = ends[static_cast<size_t>(task)];
    int64_t o = task > 0 ? ends[static_cast<size_t>(task) - 1] : 0;
    if (x.rows > kStreamRows)
      for (; o + kTileWeights <= end; o += kTileWeights)
        dot_tiles(x, weight, bias, y, o, scratch.matrix<float>()[worker]);
    for (; o < end; ++o) dot_few(x, weight[o], bias ? bias[o] : 0.0f, y, o);
  });
}

void few_rows_forward(const LinearForward& args, Threads& threads) {
  switch (args.weight.dtype()) {
    case DType::bf16: return few_rows<BF16>(args, threads);
    case DType::f16: return few_rows<F16>(args, threads);
    default: return few_rows<float>(args, threads);
  }
}

HWY_INLINE float to_float(float value) { return value; }
template <class W>
HWY_INLINE float to_float(W value) {
  return static_cast<float>(value);
}

template <class W>
void widen_rows(const Matrix<W>& from, const Matrix<float>& to, Threads& threads) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  threads.parallel((from.rows + kTaskRows - 1) / kTaskRows, [&](int64_t task, int) {
    for (int64_t row = task * kTaskRows; row < std::min(from.rows, (task + 1) * kTaskRows); ++row) {
      int64_t i = 0;
      for (; i + lanes <= from.columns; i += lanes) hn::StoreU(load_weight(d, from[row] + i), d, to[row] + i);
      for (; i < from.columns; ++i) to[row][i] = to_float(from[row][i]);
    }
  });
}

void widen(const Tensor& from, const Tensor& to, Threads& threads) {
  if (from.dtype() == DType::bf16)
    widen_rows(from.matrix<BF16>(), to.matrix<float>(), threads);
  else
    widen_rows(from.matrix<F16>(), to.matrix<float>(), threads);
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
namespace {

HWY_EXPORT(few_rows_forward);
HWY_EXPORT(widen);

// Up to here the few-rows kernel is faster than GEMM, which packs both operands first (bench: `linear rows`).
constexpr int64_t kFewRows = 16;
// Weight rows widened at a time: with 2,560 columns 20 MiB of scratch, whatever the vocabulary.
constexpr int64_t kWidenRows = 2048;

void add_bias(const Matrix<float>& y, const float* bias, Threads& threads) {
  threads.parallel((y.rows + 63) / 64, [&](int64_t task, int) {
    for (int64_t t = task * 64; t < std::min(y.rows, (task + 1) * 64); ++t)
      for (int64_t o = 0; o < y.columns; ++o) y[t][o] += bias[o];
  });
}

}  // namespace

void linear_forward(const LinearForward& args, Threads& threads) {
  require(args.weight.dtype() != DType::f64 && is_float(args.weight.dtype()),
          "linear: the cpu device takes weights in f32, bf16 or f16, found ", name_of(args.weight.dtype()),
          "; use --device ref for f64");
  const auto x = args.x.matrix<float>(), y = args.y.matrix<float>();
  if (x.rows <= kFewRows) return HWY_DYNAMIC_DISPATCH(few_rows_forward)(args, threads);
  if (args.weight.dtype() == DType::f32) {
    gemm(x, Transpose::no, args.weight.matrix<float>(), Transpose::yes, y, false, threads);
  } else {
    const int64_t out = args.weight.size(0), block = std::min(out, kWidenRows);
    const Tensor scratch = Tensor::empty({block, args.weight.size(1)}, DType::f32);
    for (int64_t o = 0; o < out; o += block) {
      const int64_t end = std::min(out, o + block);
      const Tensor widened = scratch.rows(0, end - o);
      HWY_DYNAMIC_DISPATCH(widen)(args.weight.rows(o, end), widened, threads);
      gemm(x, Transpose::no, widened.matrix<float>(), Transpose::yes, args.y.columns(o, end).matrix<float>(), false,
           threads);
    }
  }
  if (args.bias) add_bias(y, args.bias.data<float>(), threads);
}

void linear_backward(const LinearBackward& args, Threads& threads) {
  const auto dy = args.dy.matrix<float>();
  if (args.dx)
    gemm(dy, Transpose::no, args.weight.matrix<float>(), Transpose::no, args.dx.matrix<float>(), args.add_dx, threads);
  if (args.dweight)
    gemm(dy, Transpose::yes, args.x.matrix<float>(), Transpose::no, args.dweight.matrix<float>(), args.add_dweight,
         threads);
  if (!args.dbias) return;
  args.dbias.fill_zero();
  float* dbias = args.dbias.data<float>();
  constexpr int64_t kColumns = 64;
  threads.parallel((dy.columns + kColumns - 1) / kColumns, [&](int64_t task, int) {
    for (int64_t t = 0; t < dy.rows; ++t)
      for (int64_t o = task * kColumns; o < std::min(dy.columns, (task + 1) * kColumns); ++o) dbias[o] += dy[t][o];
  });
}

}  // namespace ssm::cpu
#endif
