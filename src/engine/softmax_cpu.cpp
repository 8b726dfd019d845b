// Exponentials of logits, eight or sixteen at a time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/softmax_cpu.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include "engine/softmax.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

void softmax_weights(const float* logits, int64_t count, float most, float scale, float* weights) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto top = hn::Set(d, most), factor = hn::Set(d, scale * kLog2E), lowest = hn::Set(d, -126.0f);
  for (int64_t i = 0; i < count; i += lanes) {
    const auto left = static_cast<size_t>(count - i);
    const auto power = hn::Mul(hn::Sub(load_up_to(d, logits + i, left), top), factor);
    const auto weight = hn::IfThenElseZero(hn::Ge(power, lowest), exp2_nonpositive(d, power));
    store_up_to(d, weight, weights + i, left);
  }
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {

HWY_EXPORT(softmax_weights);
void softmax_weights(const float* logits, int64_t count, float most, float scale, float* weights) {
  HWY_DYNAMIC_DISPATCH(softmax_weights)(logits, count, most, scale, weights);
}

}  // namespace ssm::cpu
#endif
