// adamw with SIMD and threads over blocks of fixed size, so that neither an update nor a norm depends on the number of
// threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw/adamw_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "ops/adamw/adamw.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Elements of one task: of an update 28 bytes each, 460 KB of traffic; of a norm 4 bytes each.
constexpr int64_t kUpdateBlock = 16384, kNormBlock = 4096, kNormTask = 16 * kNormBlock;

void adamw_update(const AdamWItem& item, const AdamWStep& step, double gradient_scale, Threads& threads) {
  const int64_t count = item.value.count();
  const hn::ScalableTag<float> d;
  const auto constant = [&](double value) { return hn::Set(d, static_cast<float>(value)); };
  const auto towards_g = constant(1 - step.beta1), beta2 = constant(step.beta2), rest2 = constant(1 - step.beta2);
  const auto eps = constant(step.eps), decay = constant(step.decay(item)), rate = constant(step.rate(item));
  const auto correction = constant(step.root_correction()), scale = constant(gradient_scale);
  float *w = item.value.data<float>(), *m = item.m.data<float>(), *v = item.v.data<float>();
  const float* gradient = item.gradient.data<float>();
  threads.parallel((count + kUpdateBlock - 1) / kUpdateBlock, [&](int64_t task, int) {
    const auto end = static_cast<size_t>(std::min(count, (task + 1) * kUpdateBlock));
    for (auto i = static_cast<size_t>(task * kUpdateBlock); i < end; i += hn::Lanes(d)) {
      const size_t left = end - i;
      const auto g = hn::Mul(load_up_to(d, gradient + i, left), scale);  // (1)
      const auto old_m = load_up_to(d, m + i, left);
      const auto new_m = hn::MulAdd(hn::Sub(g, old_m), towards_g, old_m);  // (2)
      const auto new_v = hn::MulAdd(hn::Mul(g, g), rest2, hn::Mul(load_up_to(d, v + i, left), beta2));
      store_up_to(d, new_m, m + i, left);
      store_up_to(d, new_v, v + i, left);
      const auto change = hn::Div(hn::Mul(rate, new_m), hn::MulAdd(hn::Sqrt(new_v), correction, eps));
      store_up_to(d, hn::MulSub(load_up_to(d, w + i, left), decay, change), w + i, left);  // (3)
    }
  });
}

double squares(const float* values, size_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> d32;
  auto sum = hn::Zero(d);
  size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    const auto value = hn::PromoteTo(d, hn::LoadU(d32, values + i));
    sum = hn::MulAdd(value, value, sum);
  }
  double total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < count; ++i) total += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return total;
}

double sum_of_squares(const Tensor& tensor, Threads& threads) {
  const int64_t count = tensor.count();
  const float* values = tensor.data<float>();
  std::vector<double> blocks(static_cast<size_t>((count + kNormBlock - 1) / kNormBlock));
  threads.parallel((count + kNormTask - 1) / kNormTask, [&](int64_t task, int) {
    for (int64_t i = task * kNormTask; i < std::min(count, (task + 1) * kNormTask); i += kNormBlock)
      blocks[static_cast<size_t>(i / kNormBlock)] =
          squares(values + i, static_cast<size_t>(std::min(kNormBlock, count - i)));
  });
  double sum = 0;
  for (const double block : blocks) sum += block;
  return sum;
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(adamw_update);
HWY_EXPORT(sum_of_squares);

void adamw_update(const AdamWItem& item, const AdamWStep& step, double scale, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(adamw_update)(item, step, scale, threads);
}

double sum_of_squares(const Tensor& tensor, Threads& threads) {
  return HWY_DYNAMIC_DISPATCH(sum_of_squares)(tensor, threads);
}
}  // namespace ssm::cpu
#endif
