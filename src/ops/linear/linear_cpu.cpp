// linear on the CPU. Few rows: each weight is read once and multiplied into all of them; that traffic is the cost of
// decoding, so the kernel only has to keep up with memory. Many rows: GEMM, after widening bf16 and f16 weights block
// by block.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/linear_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "ops/linear/gemm.h"
#include "ops/linear/linear.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// A few rows go through the kernel in groups: 8 rows with two sums each fill the 16 registers of AVX2.
constexpr int64_t kGroup = 8;
// Weight rows of one task: 64 x 768 x 4 bytes = 196 KiB, some 10 us of memory traffic.
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

HWY_INLINE float to_float(float value) { return value; }
template <class W>
HWY_INLINE float to_float(W value) {
  return static_cast<float>(value);
}

// y[t][o] for kRows rows of x and one row of the weight. The weight is one stream from front to back: processors fetch
// that ahead better than four rows side by side, or than prefetch instructions (30 GB/s a core; with them 17 to 28).
// The order of a sum depends on `in` alone: a row's result is the same in every group and batch.
template <int kRows, class W>
void dot_rows(const Matrix<float>& x, const W* weight, float bias, const Matrix<float>& y, int64_t t, int64_t o) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> even[kRows], odd[kRows];
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= x.columns; i += 2 * lanes) {
    const auto first = load_weight(d, weight + i), second = load_weight(d, weight + i + lanes);
    for (int r = 0; r < kRows; ++r) {
      even[r] = hn::MulAdd(first, hn::LoadU(d, x[t + r] + i), even[r]);
      odd[r] = hn::MulAdd(second, hn::LoadU(d, x[t + r] + i + lanes), odd[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even[r], odd[r])));
    for (int64_t rest = i; rest < x.columns; ++rest) sum += x[t + r][rest] * to_float(weight[rest]);
    y[t + r][o] = sum + bias;
  }
}

template <class W>
void few_rows(const LinearForward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), y = args.y.matrix<float>();
  const auto weight = args.weight.matrix<W>();
  const float* bias = args.bias.data<float>();
  const int64_t out = weight.rows;
  // Long stretches of memory for each thread, a few of them so that a thread that is late costs little. Rows are
  // independent, so here the number of threads may decide.
  const int64_t rows = std::max<int64_t>(kTaskRows, out / (4 * threads.count()));
  threads.parallel((out + rows - 1) / rows, [&](int64_t task, int) {
    const int64_t end = std::min(out, (task + 1) * rows);
    for (int64_t o = task * rows; o < end; ++o) {
      const float b = bias ? bias[o] : 0.0f;
      for (int64_t t = 0; t < x.rows; t += kGroup) {
        switch (std::min(kGroup, x.rows - t)) {
          case 1: dot_rows<1>(x, weight[o], b, y, t, o); break;
          case 2: dot_rows<2>(x, weight[o], b, y, t, o); break;
          case 3: dot_rows<3>(x, weight[o], b, y, t, o); break;
          case 4: dot_rows<4>(x, weight[o], b, y, t, o); break;
          case 5: dot_rows<5>(x, weight[o], b, y, t, o); break;
          case 6: dot_rows<6>(x, weight[o], b, y, t, o); break;
          case 7: dot_rows<7>(x, weight[o], b, y, t, o); break;
          default: dot_rows<8>(x, weight[o], b, y, t, o); break;
        }
      }
    }
  });
}

void few_rows_forward(const LinearForward& args, Threads& threads) {
  switch (args.weight.dtype()) {
    case DType::bf16: return few_rows<BF16>(args, threads);
    case DType::f16: return few_rows<F16>(args, threads);
    default: return few_rows<float>(args, threads);
  }
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
