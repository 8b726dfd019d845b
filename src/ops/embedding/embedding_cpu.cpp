// embedding with threads over rows and, in the backward, over columns: then every element of the gradient has one
// thread, which adds its tokens in order. SIMD widens bf16 and f16 rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/embedding/embedding_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "ops/embedding/embedding.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// A forward task: 64 rows of 768 floats are 196 KB to write. A backward task: 64 floats are four cache lines a token.
constexpr int64_t kRows = 64;
constexpr size_t kColumns = 64;

void widen(const float* from, size_t count, float* to) { std::copy_n(from, count, to); }

void widen(const BF16* from, size_t count, float* to) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> d32;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  size_t c = 0;
  for (; c + hn::Lanes(d) <= count; c += hn::Lanes(d)) {
    const auto bits = hn::LoadU(d16, &from[c].bits);
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits))), d, to + c);
  }
  for (; c < count; ++c) to[c] = static_cast<float>(from[c]);
}

void widen(const F16* from, size_t count, float* to) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> d16;
  size_t c = 0;
  for (; c + hn::Lanes(d) <= count; c += hn::Lanes(d))
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from + c))), d, to + c);
  for (; c < count; ++c) to[c] = static_cast<float>(from[c]);
}

template <class W>
void gather_rows(const EmbeddingForward& args, Threads& threads) {
  const auto weight = args.weight.matrix<W>();
  const auto y = args.y.matrix<float>();
  const int64_t* ids = args.ids.data<int64_t>();
  threads.parallel((y.rows + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t t = task * kRows; t < std::min(y.rows, (task + 1) * kRows); ++t)
      widen(weight[ids[t]], static_cast<size_t>(y.columns), y[t]);  // (1)
  });
}

void embedding_forward(const EmbeddingForward& args, Threads& threads) {
  switch (args.weight.dtype()) {
    case DType::bf16: return gather_rows<BF16>(args, threads);
    case DType::f16: return gather_rows<F16>(args, threads);
    default: return gather_rows<float>(args, threads);
  }
}

void embedding_backward(const EmbeddingBackward& args, Threads& threads) {
  const auto dy = args.dy.matrix<float>(), dweight = args.dweight.matrix<float>();
  const int64_t* ids = args.ids.data<int64_t>();
  const auto columns = static_cast<size_t>(dy.columns);
  const hn::ScalableTag<float> d;
  if (!args.add) {
    threads.parallel((dweight.rows + kRows - 1) / kRows, [&](int64_t task, int) {
      for (int64_t row = task * kRows; row < std::min(dweight.rows, (task + 1) * kRows); ++row)
        std::fill_n(dweight[row], columns, 0.0f);
    });
  }
  threads.parallel(static_cast<int64_t>((columns + kColumns - 1) / kColumns), [&](int64_t task, int) {
    const size_t begin = static_cast<size_t>(task) * kColumns, end = std::min(columns, begin + kColumns);
    for (int64_t t = 0; t < dy.rows; ++t) {
      float* to = dweight[ids[t]];
      for (size_t c = begin; c < end; c += hn::Lanes(d)) {  // (2)
        const auto sum = hn::Add(load_up_to(d, to + c, end - c), load_up_to(d, dy[t] + c, end - c));
        store_up_to(d, sum, to + c, end - c);
      }
    }
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(embedding_forward);
HWY_EXPORT(embedding_backward);

void embedding_forward(const EmbeddingForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(embedding_forward)(args, threads);
}

void embedding_backward(const EmbeddingBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(embedding_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
