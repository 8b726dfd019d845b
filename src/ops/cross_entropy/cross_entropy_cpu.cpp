// cross_entropy with SIMD over the vocabulary and threads over rows; the fused form goes through the rows in chunks
// and leaves products to GEMM. Losses are summed in double in the order of the rows. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cross_entropy/cross_entropy_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/cross_entropy/cross_entropy.h"
#include "ops/linear/gemm.h"
#include "ops/linear/linear.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Numbers of one task: some 10 us of work. A row of a large vocabulary is more and is a task of its own.
constexpr int64_t kTask = 16384;

struct Softmax {
  float shift, sum;  // the largest logit; sum_v exp(l_v - shift)
};

// When `exponentials` is given, leaves exp(l_v - shift) there; it may be `logits`. With a NaN among the logits both
// numbers are NaN, and the exponentials anything: a maximum may overlook NaN, so it is looked for.
Softmax softmax(const float* logits, size_t vocab, float* exponentials) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto largest = lowest;
  auto nan = hn::IsNaN(lowest);
  size_t v = 0;
  for (; v + lanes <= vocab; v += lanes) {
    const auto logit = hn::LoadU(d, logits + v);
    largest = hn::Max(largest, logit);
    nan = hn::Or(nan, hn::IsNaN(logit));
  }
  if (v < vocab) {
    const auto rest = load_up_to(d, logits + v, vocab - v);
    largest = hn::Max(largest, hn::IfThenElse(hn::FirstN(d, vocab - v), rest, lowest));
    nan = hn::Or(nan, hn::IsNaN(rest));
  }
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  if (!hn::AllFalse(d, nan)) return {kNaN, kNaN};
  const auto shift = hn::MaxOfLanes(d, largest), log2e = hn::Set(d, kLog2E);
  auto sum = hn::Zero(d);
  for (v = 0; v + lanes <= vocab; v += lanes) {
    const auto e = exp2_nonpositive(d, hn::Mul(hn::Sub(hn::LoadU(d, logits + v), shift), log2e));
    sum = hn::Add(sum, e);
    if (exponentials) hn::StoreU(e, d, exponentials + v);
  }
  if (v < vocab) {
    const auto rest = load_up_to(d, logits + v, vocab - v);
    const auto e = exp2_nonpositive(d, hn::Mul(hn::Sub(rest, shift), log2e));
    sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, vocab - v), e));
    if (exponentials) store_up_to(d, e, exponentials + v, vocab - v);
  }
  return {hn::GetLane(shift), hn::GetLane(hn::SumOfLanes(d, sum))};
}

// Rows [first, first + logits.rows) of the targets: (2) into `losses` when there, (5) times `scale` into `slopes` when
// there, which may be `logits`.
void rows_of(const Matrix<float>& logits, const Targets& targets, int64_t first, float* losses, float scale,
             const Matrix<float>& slopes, Threads& threads) {
  const int64_t* ids = targets.ids.data<int64_t>() + first;
  const auto vocab = static_cast<size_t>(logits.columns);
  const int64_t group = std::max<int64_t>(1, kTask / std::max<int64_t>(1, logits.columns));
  const hn::ScalableTag<float> d;
  threads.parallel((logits.rows + group - 1) / group, [&](int64_t task, int) {
    for (int64_t t = task * group; t < std::min(logits.rows, (task + 1) * group); ++t) {
      if (ids[t] == targets.ignore) {
        if (losses) losses[first + t] = 0;
        if (slopes) std::fill_n(slopes[t], vocab, 0.0f);
        continue;
      }
      const double logit = logits[t][ids[t]];
      const Softmax row = softmax(logits[t], vocab, slopes ? slopes[t] : nullptr);
      if (losses)  // (4)
        losses[first + t] = static_cast<float>(std::log(static_cast<double>(row.sum)) + (row.shift - logit));
      if (!slopes) continue;
      const auto factor = hn::Set(d, scale / row.sum);
      float* slope = slopes[t];
      for (size_t v = 0; v < vocab; v += hn::Lanes(d))
        store_up_to(d, hn::Mul(load_up_to(d, slope + v, vocab - v), factor), slope + v, vocab - v);
      slope[ids[t]] -= scale;
    }
  });
}

// to = scale * from, or to += scale * from.
void scale_into(const Matrix<float>& from, float scale, const Matrix<float>& to, bool add, Threads& threads) {
  const auto columns = static_cast<size_t>(to.columns);
  const int64_t group = std::max<int64_t>(1, kTask / std::max<int64_t>(1, to.columns));
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, scale);
  threads.parallel((to.rows + group - 1) / group, [&](int64_t task, int) {
    for (int64_t row = task * group; row < std::min(to.rows, (task + 1) * group); ++row) {
      for (size_t c = 0; c < columns; c += hn::Lanes(d)) {
        const auto before = add ? load_up_to(d, to[row] + c, columns - c) : hn::Zero(d);
        const auto value = hn::MulAdd(load_up_to(d, from[row] + c, columns - c), factor, before);
        store_up_to(d, value, to[row] + c, columns - c);
      }
    }
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
namespace {

HWY_EXPORT(rows_of);
HWY_EXPORT(scale_into);

// A chunk of r rows reads the weight twice and its gradient twice for 6 r operations a weight: 3 r / 8 operations a
// byte, so 160 rows (32 MB of logits of 50,280 words) keep GEMM from waiting for memory and 512 are enough for any
// vocabulary. Rows come in sixteens because GEMM likes full tiles.
constexpr int64_t kChunkBytes = int64_t{32} << 20, kChunkRows = 512, kChunkStep = 16;

int64_t chunk_rows(int64_t vocab) {
  const int64_t rows = kChunkBytes / (std::max<int64_t>(1, vocab) * int64_t{sizeof(float)});
  return std::clamp(rows / kChunkStep * kChunkStep, kChunkStep, kChunkRows);
}

void mean(const Tensor& losses, int64_t counted, const Tensor& loss) {  // (3)
  double sum = 0;
  for (const float one : losses.span<float>()) sum += one;
  *loss.data<float>() = counted ? static_cast<float>(sum / static_cast<double>(counted)) : 0.0f;
}

// The weight of one token in (3).
float share(const Targets& targets) { return targets.counted ? 1 / static_cast<float>(targets.counted) : 0.0f; }

}  // namespace

void cross_entropy_forward(const CrossEntropyForward& args, Threads& threads) {
  const auto run = HWY_DYNAMIC_DISPATCH(rows_of);
  run(args.logits.matrix<float>(), args.targets, 0, args.losses.data<float>(), 0, {}, threads);
  mean(args.losses, args.targets.counted, args.loss);
}

void cross_entropy_backward(const CrossEntropyBackward& args, Threads& threads) {
  const float scale = share(args.targets) * args.dloss.item<float>();
  const auto run = HWY_DYNAMIC_DISPATCH(rows_of);
  run(args.logits.matrix<float>(), args.targets, 0, nullptr, scale, args.dlogits.matrix<float>(), threads);
}

void linear_cross_entropy_forward(const LinearCrossEntropyForward& args, Threads& threads) {
  const int64_t rows = args.x.size(0), vocab = args.weight.size(0), step = std::min(rows, chunk_rows(vocab));
  const bool slopes = args.dx || args.dweight;
  const auto run = HWY_DYNAMIC_DISPATCH(rows_of);
  const Tensor scratch = Tensor::empty({step, vocab}, DType::f32);
  if (rows == 0 && args.dweight) args.dweight.fill_zero();
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t last = std::min(rows, first + step);
    const Tensor x = args.x.rows(first, last), chunk = scratch.rows(0, last - first);
    linear_forward({.x = x, .weight = args.weight, .y = chunk}, threads);  // (1), whatever the weight's dtype
    const auto logits = chunk.matrix<float>();
    run(logits, args.targets, first, args.losses.data<float>(), share(args.targets), slopes ? logits : Matrix<float>{},
        threads);
    if (args.dx)  // (6)
      gemm(logits, Transpose::no, args.weight.matrix<float>(), Transpose::no, args.dx.rows(first, last).matrix<float>(),
           false, threads);
    if (args.dweight)  // (7)
      gemm(logits, Transpose::yes, x.matrix<float>(), Transpose::no, args.dweight.matrix<float>(), first > 0, threads);
  }
  mean(args.losses, args.targets.counted, args.loss);
}

void linear_cross_entropy_backward(const LinearCrossEntropyBackward& args, Threads& threads) {
  const float scale = args.dloss.item<float>();
  const auto run = HWY_DYNAMIC_DISPATCH(scale_into);
  if (args.dx) run(args.mean_dx.matrix<float>(), scale, args.dx.matrix<float>(), args.add_dx, threads);
  if (args.dweight)
    run(args.mean_dweight.matrix<float>(), scale, args.dweight.matrix<float>(), args.add_dweight, threads);
}

}  // namespace ssm::cpu
#endif
