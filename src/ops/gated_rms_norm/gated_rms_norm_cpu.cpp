// gated_rms_norm with SIMD over channels and threads over rows. The gradient of the weight is summed over fixed blocks
// of rows first and over the blocks in order last, so it does not depend on the number of threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/gated_rms_norm/gated_rms_norm_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "ops/gated_rms_norm/gated_rms_norm.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;

// Rows of one task: 64 x 1536 x 12 bytes are some 40 us of work; below kOneTask elements (about 10 us) waking a thread
// costs more than it brings.
constexpr int64_t kRows = 64, kFewRows = 8, kOneTask = 8192;

int64_t rows_of_task(const Matrix<float>& y) { return y.rows * y.columns <= kOneTask ? y.rows : kFewRows; }

// One group of one row, channels [begin, end).
struct Group {
  const float *y, *z, *weight;  // weight may be null
  size_t begin, end;
};

// The sum of squares of what is normed, and the gated value in `out` (or y itself, when the norm comes first).
template <bool kGateFirst>
HWY_INLINE float square_and_gate(const Group& group, float* out) {
  const Tag d;
  auto squares = hn::Zero(d);
  for (size_t c = group.begin; c < group.end; c += hn::Lanes(d)) {
    const size_t count = group.end - c;
    const auto y = load_up_to(d, group.y + c, count);
    const auto gated = hn::Mul(y, silu(d, load_up_to(d, group.z + c, count)));
    store_up_to(d, gated, out + c, count);
    squares = kGateFirst ? hn::MulAdd(gated, gated, squares) : hn::MulAdd(y, y, squares);
  }
  return hn::GetLane(hn::SumOfLanes(d, squares));
}

void gated_rms_norm_forward(const GatedNormForward& args, Threads& threads) {
  const auto y = args.y.matrix<float>(), z = args.z.matrix<float>(), out = args.out.matrix<float>(),
             scale = args.scale.matrix<float>();
  const float* weight = args.weight.data<float>();
  const int64_t groups = scale ? scale.columns : 1, width = y.columns / groups, rows = rows_of_task(y);
  if (y.rows == 0) return;
  const Tag d;
  threads.parallel((y.rows + rows - 1) / rows, [&](int64_t task, int) {
    for (int64_t t = task * rows; t < std::min(y.rows, (task + 1) * rows); ++t) {
      for (int64_t k = 0; k < groups; ++k) {
        const Group group{y[t], z[t], weight, static_cast<size_t>(k * width), static_cast<size_t>((k + 1) * width)};
        const float squares = args.order == GateOrder::gate_first ? square_and_gate<true>(group, out[t])
                                                                  : square_and_gate<false>(group, out[t]);
        if (!scale) continue;  // (3)
        scale[t][k] = 1 / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(args.eps));
        const auto s = hn::Set(d, scale[t][k]);
        for (size_t c = group.begin; c < group.end; c += hn::Lanes(d)) {  // (1) and (2)
          const size_t count = group.end - c;
          const auto scaled = hn::Mul(load_up_to(d, out[t] + c, count), s);
          store_up_to(d, hn::Mul(scaled, load_up_to(d, weight + c, count)), out[t] + c, count);
        }
      }
    }
  });
}

// (4) to (8) for one group of one row. `dweight`, this block's sums, may be null, as may dy and dz.
template <bool kGateFirst>
HWY_INLINE void backward_group(const Group& group, const float* scale, const float* dout, float* dy, float* dz,
                               float* dweight) {
  const Tag d;
  const size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, 1.0f), s = hn::Set(d, scale ? *scale : 1.0f);
  auto dot = hn::Zero(d);
  for (size_t c = group.begin; scale && c < group.end; c += lanes) {
    const size_t count = group.end - c;
    const auto gated = hn::Mul(load_up_to(d, group.y + c, count), silu(d, load_up_to(d, group.z + c, count)));
    const auto product = hn::Mul(load_up_to(d, dout + c, count), gated);
    dot = hn::MulAdd(product, load_up_to(d, group.weight + c, count), dot);
    if (dweight)  // (8)
      store_up_to(d, hn::MulAdd(product, s, load_up_to(d, dweight + c, count)), dweight + c, count);
  }
  const float cube = scale ? *scale * *scale * *scale / static_cast<float>(group.end - group.begin) : 0.0f;
  const auto shared = hn::Mul(hn::SumOfLanes(d, dot), hn::Set(d, cube));
  for (size_t c = group.begin; c < group.end; c += lanes) {
    const size_t count = group.end - c;
    const auto y = load_up_to(d, group.y + c, count), z = load_up_to(d, group.z + c, count);
    const auto sigma = sigmoid(d, z), gating = hn::Mul(z, sigma);
    const auto slope = hn::Mul(sigma, hn::MulAdd(z, hn::Sub(one, sigma), one));
    auto weighted = load_up_to(d, dout + c, count);
    if (group.weight) weighted = hn::Mul(weighted, load_up_to(d, group.weight + c, count));
    const auto normed = kGateFirst ? hn::Mul(y, gating) : y;
    const auto direct = kGateFirst ? weighted : hn::Mul(weighted, gating);
    const auto dnormed = hn::NegMulAdd(normed, shared, hn::Mul(direct, s));                  // (5)
    if (dy) store_up_to(d, kGateFirst ? hn::Mul(dnormed, gating) : dnormed, dy + c, count);  // (6)
    if (!dz) continue;
    const auto dgate = kGateFirst ? dnormed : hn::Mul(weighted, s);
    store_up_to(d, hn::Mul(hn::Mul(dgate, y), slope), dz + c, count);  // (7)
  }
}

void gated_rms_norm_backward(const GatedNormBackward& args, Threads& threads) {
  const auto y = args.y.matrix<float>(), z = args.z.matrix<float>(), scale = args.scale.matrix<float>(),
             dout = args.dout.matrix<float>(), dy = args.dy.matrix<float>(), dz = args.dz.matrix<float>();
  const float* weight = args.weight.data<float>();
  const int64_t groups = scale ? scale.columns : 1, width = y.columns / groups, blocks = (y.rows + kRows - 1) / kRows;
  const Tensor partial = args.dweight ? Tensor::zeros({blocks, y.columns}, DType::f32) : Tensor();
  const auto dweights = partial.matrix<float>();
  threads.parallel(blocks, [&](int64_t task, int) {
    for (int64_t t = task * kRows; t < std::min(y.rows, (task + 1) * kRows); ++t) {
      for (int64_t k = 0; k < groups; ++k) {
        const Group group{y[t], z[t], weight, static_cast<size_t>(k * width), static_cast<size_t>((k + 1) * width)};
        const auto backward = args.order == GateOrder::gate_first ? &backward_group<true> : &backward_group<false>;
        backward(group, scale ? scale[t] + k : nullptr, dout[t], dy ? dy[t] : nullptr, dz ? dz[t] : nullptr,
                 dweights ? dweights[task] : nullptr);
      }
    }
  });
  if (!args.dweight) return;
  args.dweight.fill_zero();
  for (int64_t block = 0; block < blocks; ++block)
    args.dweight.add(partial.rows(block, block + 1).reshape({y.columns}));
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(gated_rms_norm_forward);
HWY_EXPORT(gated_rms_norm_backward);

void gated_rms_norm_forward(const GatedNormForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(gated_rms_norm_forward)(args, threads);
}

void gated_rms_norm_backward(const GatedNormBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(gated_rms_norm_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
