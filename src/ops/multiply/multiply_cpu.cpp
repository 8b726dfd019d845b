// multiply with SIMD over columns and threads over blocks of rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/multiply/multiply_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "ops/multiply/multiply.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

constexpr int64_t kElements = 65536;  // of a task: 768 KiB to move, some 50 us

void multiply(const Product& args, Threads& threads) {
  const auto left = args.a.matrix<float>(), right = args.b.matrix<float>(), out = args.y.matrix<float>();
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t block = std::max<int64_t>(1, kElements / std::max<int64_t>(1, out.columns));
  threads.parallel((out.rows + block - 1) / block, [&](int64_t task, int) {
    for (int64_t t = task * block; t < std::min(out.rows, (task + 1) * block); ++t)
      for (int64_t c = 0; c < out.columns; c += lanes) {
        const auto count = static_cast<size_t>(std::min(lanes, out.columns - c));
        store_up_to(d, hn::Mul(load_up_to(d, left[t] + c, count), load_up_to(d, right[t] + c, count)), out[t] + c,
                    count);
      }
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(multiply);

void multiply(const Product& args, Threads& threads) { HWY_DYNAMIC_DISPATCH(multiply)(args, threads); }
}  // namespace ssm::cpu
#endif
