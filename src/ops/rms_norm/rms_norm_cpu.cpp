// rms_norm with SIMD over channels and threads over rows. The gradient of the weight is summed over fixed blocks of
// rows first and over the blocks in order last, so it does not depend on the number of threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rms_norm/rms_norm_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "ops/rms_norm/rms_norm.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Rows of one task: enough work (64 x 768 x 16 bytes) to be worth handing out, few enough to share evenly.
constexpr int64_t kRows = 64;

void rms_norm_forward(const RmsNormForward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), residual = args.residual.matrix<float>(), y = args.y.matrix<float>(),
             sum = args.sum.matrix<float>();
  const auto weight = args.weight.matrix<float>();  // (d), or absent
  float* scales = args.scale.data<float>();
  const auto columns = static_cast<size_t>(x.columns);
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto weight_at = [&](size_t c) {
    return weight ? load_up_to(d, weight[0] + c, columns - c) : hn::Set(d, 1.0f);
  };
  threads.parallel((x.rows + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t t = task * kRows; t < std::min(x.rows, (task + 1) * kRows); ++t) {
      auto squares = hn::Zero(d);
      for (size_t c = 0; c < columns; c += lanes) {
        auto r = load_up_to(d, x[t] + c, columns - c);
        if (residual) {
          r = hn::Add(r, load_up_to(d, residual[t] + c, columns - c));
          store_up_to(d, r, sum[t] + c, columns - c);
        }
        squares = hn::MulAdd(r, r, squares);
      }
      const float mean = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(columns);
      scales[t] = 1 / std::sqrt(mean + static_cast<float>(args.eps));
      const auto scale = hn::Set(d, scales[t]);
      const float* from = residual ? sum[t] : x[t];
      for (size_t c = 0; c < columns; c += lanes) {
        const auto r = load_up_to(d, from + c, columns - c);
        store_up_to(d, hn::Mul(hn::Mul(r, scale), weight_at(c)), y[t] + c, columns - c);
      }
    }
  });
}

void rms_norm_backward(const RmsNormBackward& args, Threads& threads) {
  const auto r = args.sum.matrix<float>(), dy = args.dy.matrix<float>(), dsum = args.dsum.matrix<float>(),
             dr = (args.dx ? args.dx : args.dresidual).matrix<float>();
  const auto weight = args.weight.matrix<float>();  // (d), or absent
  const float* scales = args.scale.data<float>();
  const auto columns = static_cast<size_t>(r.columns);
  const int64_t blocks = (r.rows + kRows - 1) / kRows;
  const Tensor partial = args.dweight ? Tensor::zeros({blocks, r.columns}, DType::f32) : Tensor();
  const auto dweights = partial.matrix<float>();
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto weight_at = [&](size_t c) {
    return weight ? load_up_to(d, weight[0] + c, columns - c) : hn::Set(d, 1.0f);
  };
  threads.parallel(blocks, [&](int64_t task, int) {
    for (int64_t t = task * kRows; t < std::min(r.rows, (task + 1) * kRows); ++t) {
      const auto scale = hn::Set(d, scales[t]);
      auto dot = hn::Zero(d);
      for (size_t c = 0; c < columns; c += lanes) {
        const auto product = hn::Mul(load_up_to(d, dy[t] + c, columns - c), load_up_to(d, r[t] + c, columns - c));
        dot = hn::MulAdd(product, weight_at(c), dot);
        if (!dweights) continue;
        float* to = dweights[task] + c;
        store_up_to(d, hn::MulAdd(product, scale, load_up_to(d, to, columns - c)), to, columns - c);  // (4)
      }
      if (!dr) continue;
      const float cube = scales[t] * scales[t] * scales[t] / static_cast<float>(columns);
      const auto shared = hn::Mul(hn::SumOfLanes(d, dot), hn::Set(d, cube));
      for (size_t c = 0; c < columns; c += lanes) {  // (3)
        const auto scaled = hn::Mul(weight_at(c), scale);
        auto out = hn::Mul(load_up_to(d, dy[t] + c, columns - c), scaled);
        out = hn::NegMulAdd(load_up_to(d, r[t] + c, columns - c), shared, out);
        if (dsum) out = hn::Add(out, load_up_to(d, dsum[t] + c, columns - c));
        store_up_to(d, out, dr[t] + c, columns - c);
      }
    }
  });
  if (args.dx && args.dresidual) args.dresidual.copy_from(args.dx);
  if (!args.dweight) return;
  args.dweight.fill_zero();
  for (int64_t block = 0; block < blocks; ++block)
    args.dweight.add(partial.rows(block, block + 1).reshape({r.columns}));
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(rms_norm_forward);
HWY_EXPORT(rms_norm_backward);

void rms_norm_forward(const RmsNormForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(rms_norm_forward)(args, threads);
}

void rms_norm_backward(const RmsNormBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(rms_norm_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
