// gelu and glu with SIMD over columns and threads over blocks of rows. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/activation/activation_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "ops/activation/activation.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;

constexpr int64_t kElements = 16384;  // of a task: some 10 us

// e^(-x^2/2), which both need.
HWY_INLINE Vec bell(Vec x) { return exp2_nonpositive(Tag(), hn::Mul(hn::Mul(x, x), hn::Set(Tag(), -0.5f * kLog2E))); }

// Phi(x) of (1), from `shape` = e^(-x^2/2): for v = |x| / sqrt 2 >= 0, 1 - erf(v) = e^(-v^2) t P(t) with t = 1 / (1 +
// 0.4 v). P was fitted to the smallest largest error, 2.8e-8; with the rounding of its evaluation 4e-7.
HWY_INLINE Vec normal_distribution(Vec x, Vec shape) {
  const Tag d;
  const Vec one = hn::Set(d, 1.0f);
  const Vec t = hn::Div(one, hn::MulAdd(hn::Abs(x), hn::Set(d, 0.4f * 0.70710678f), one));
  Vec p = hn::MulAdd(hn::Set(d, -0.200258827f), t, hn::Set(d, 0.709145663f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.370905297f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.468272089f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.161824377f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.231921968f));
  const Vec tail = hn::Mul(hn::Mul(p, t), hn::Mul(shape, hn::Set(d, 0.5f)));
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail));
}

// Calls body(row, column, count) for vectors that cover a matrix.
template <class Body>
void for_vectors(int64_t rows, int64_t columns, Threads& threads, const Body& body) {
  const int64_t block = std::max<int64_t>(1, kElements / std::max<int64_t>(1, columns));
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  threads.parallel((rows + block - 1) / block, [&](int64_t task, int) {
    for (int64_t t = task * block; t < std::min(rows, (task + 1) * block); ++t)
      for (int64_t c = 0; c < columns; c += lanes) body(t, c, static_cast<size_t>(std::min(lanes, columns - c)));
  });
}

void gelu_forward(const ActivationForward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), y = args.y.matrix<float>();
  for_vectors(y.rows, y.columns, threads, [&](int64_t t, int64_t c, size_t count) {
    const Vec v = load_up_to(Tag(), x[t] + c, count);
    store_up_to(Tag(), hn::Mul(v, normal_distribution(v, bell(v))), y[t] + c, count);  // (1)
  });
}

void gelu_backward(const ActivationBackward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), dy = args.dy.matrix<float>(), dx = args.dx.matrix<float>();
  for_vectors(dx.rows, dx.columns, threads, [&](int64_t t, int64_t c, size_t count) {
    const Tag d;
    const Vec v = load_up_to(d, x[t] + c, count);
    const Vec shape = bell(v), density = hn::Mul(shape, hn::Set(d, 0.39894228f));
    const Vec slope = hn::MulAdd(v, density, normal_distribution(v, shape));  // (3)
    store_up_to(d, hn::Mul(load_up_to(d, dy[t] + c, count), slope), dx[t] + c, count);
  });
}

void glu_forward(const ActivationForward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), y = args.y.matrix<float>();
  for_vectors(y.rows, y.columns, threads, [&](int64_t t, int64_t c, size_t count) {
    const Vec gate = sigmoid(Tag(), load_up_to(Tag(), x[t] + y.columns + c, count));
    store_up_to(Tag(), hn::Mul(load_up_to(Tag(), x[t] + c, count), gate), y[t] + c, count);  // (2)
  });
}

void glu_backward(const ActivationBackward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), dy = args.dy.matrix<float>(), dx = args.dx.matrix<float>();
  for_vectors(dy.rows, dy.columns, threads, [&](int64_t t, int64_t c, size_t count) {
    const Tag d;
    const Vec gate = sigmoid(d, load_up_to(d, x[t] + dy.columns + c, count)), out = load_up_to(d, dy[t] + c, count);
    const Vec da = hn::Mul(out, gate);  // (4)
    store_up_to(d, da, dx[t] + c, count);
    const Vec rest = hn::Mul(load_up_to(d, x[t] + c, count), hn::Sub(hn::Set(d, 1.0f), gate));
    store_up_to(d, hn::Mul(da, rest), dx[t] + dy.columns + c, count);
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(gelu_forward);
HWY_EXPORT(gelu_backward);
HWY_EXPORT(glu_forward);
HWY_EXPORT(glu_backward);

void gelu_forward(const ActivationForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(gelu_forward)(args, threads);
}
void gelu_backward(const ActivationBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(gelu_backward)(args, threads);
}
void glu_forward(const ActivationForward& args, Threads& threads) { HWY_DYNAMIC_DISPATCH(glu_forward)(args, threads); }
void glu_backward(const ActivationBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(glu_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
