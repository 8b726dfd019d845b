// lstm on the CPU: a task is a sequence, whose rows must go one after the other; lanes are channels, or the terms of a
// dot product. The weight's gradient is one matrix product at the end. Equations: lstm.h, README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/lstm/lstm_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "ops/linear/gemm.h"
#include "ops/lstm/lstm.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

using Tag = hn::ScalableTag<float>;

// 2 sigmoid(2 v) - 1; what is lost near 0 is below an ulp of 1, and c and h are sums of such terms.
template <class D>
HWY_INLINE hn::Vec<D> hyperbolic_tangent(D d, hn::Vec<D> v) {
  const auto two = hn::Set(d, 2.0f);
  return hn::Sub(hn::Mul(two, sigmoid(d, hn::Mul(two, v))), hn::Set(d, 1.0f));
}

// sums[r] += W_r h for the four gates of one channel: they share the loads of h.
HWY_INLINE void gates_of(const Matrix<float>& weight, const float* h, int64_t channel, float* sums) {
  const Tag d;
  const int64_t e = weight.columns;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto i = hn::Zero(d), f = i, g = i, o = i;
  for (int64_t k = 0; k < e; k += lanes) {
    const auto count = static_cast<size_t>(e - k);
    const auto hk = load_up_to(d, h + k, count);
    i = hn::MulAdd(load_up_to(d, weight[channel] + k, count), hk, i);
    f = hn::MulAdd(load_up_to(d, weight[e + channel] + k, count), hk, f);
    g = hn::MulAdd(load_up_to(d, weight[2 * e + channel] + k, count), hk, g);
    o = hn::MulAdd(load_up_to(d, weight[3 * e + channel] + k, count), hk, o);
  }
  sums[channel] += hn::GetLane(hn::SumOfLanes(d, i));
  sums[e + channel] += hn::GetLane(hn::SumOfLanes(d, f));
  sums[2 * e + channel] += hn::GetLane(hn::SumOfLanes(d, g));
  sums[3 * e + channel] += hn::GetLane(hn::SumOfLanes(d, o));
}

// (2) to (4) for one row: `a` becomes the gates, `c` the new cells.
HWY_INLINE void advance(int64_t e, float* a, float* c, float* h) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t k = 0; k < e; k += lanes) {
    const auto count = static_cast<size_t>(e - k);
    const auto i = sigmoid(d, load_up_to(d, a + k, count)), f = sigmoid(d, load_up_to(d, a + e + k, count)),
               o = sigmoid(d, load_up_to(d, a + 3 * e + k, count));
    const auto g = hyperbolic_tangent(d, load_up_to(d, a + 2 * e + k, count));
    const auto cell = hn::MulAdd(f, load_up_to(d, c + k, count), hn::Mul(i, g));
    store_up_to(d, i, a + k, count);
    store_up_to(d, f, a + e + k, count);
    store_up_to(d, g, a + 2 * e + k, count);
    store_up_to(d, o, a + 3 * e + k, count);
    store_up_to(d, cell, c + k, count);
    store_up_to(d, hn::Mul(o, hyperbolic_tangent(d, cell)), h + k, count);
  }
}

void lstm_forward(const LstmForward& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), weight = args.weight.matrix<float>(), y = args.y.matrix<float>(),
             gates = args.gates.matrix<float>(), cells = args.cells.matrix<float>(), h = args.h.matrix<float>(),
             c = args.c.matrix<float>();
  const float* bias = args.bias.data<float>();
  const int64_t e = y.columns;
  threads.parallel(args.seqs.count(), [&](int64_t s, int) {
    const int64_t slot = args.seqs.slots[static_cast<size_t>(s)], begin = args.seqs.offsets[static_cast<size_t>(s)],
                  end = begin + args.seqs.length(s);
    const std::vector<float> zeros(static_cast<size_t>(e), 0.0f);
    std::vector<float> a(static_cast<size_t>(4 * e)), cell(zeros);
    if (c) std::copy_n(c[slot], e, cell.data());
    const float* last = h ? h[slot] : zeros.data();
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t r = 0; r < 4 * e; ++r) a[static_cast<size_t>(r)] = x[t][r] + (bias ? bias[r] : 0.0f);
      for (int64_t channel = 0; channel < e; ++channel) gates_of(weight, last, channel, a.data());  // (1)
      advance(e, a.data(), cell.data(), y[t]);
      last = y[t];
      if (!gates) continue;
      std::copy_n(a.data(), 4 * e, gates[t]);
      std::copy_n(cell.data(), e, cells[t]);
    }
    if (!h || begin == end) return;
    std::copy_n(last, e, h[slot]);
    std::copy_n(cell.data(), e, c[slot]);
  });
}

// (5) and (6) for one row: `dc` becomes the gradient of the cells before, `da` that of the gates' sums.
HWY_INLINE void retreat(int64_t e, const float* gates, const float* cells, const float* before, const float* dy,
                        const float* dh, float* dc, float* da) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto one = hn::Set(d, 1.0f);
  for (int64_t k = 0; k < e; k += lanes) {
    const auto count = static_cast<size_t>(e - k);
    const auto at = [&](const float* from) { return load_up_to(d, from + k, count); };
    const auto i = at(gates), f = at(gates + e), g = at(gates + 2 * e), o = at(gates + 3 * e);
    const auto squashed = hyperbolic_tangent(d, at(cells)), slope = hn::Add(at(dh), at(dy));
    const auto dcell = hn::MulAdd(hn::Mul(slope, o), hn::NegMulAdd(squashed, squashed, one), at(dc));
    const auto put = [&](hn::Vec<Tag> value, int64_t gate) { store_up_to(d, value, da + gate * e + k, count); };
    put(hn::Mul(hn::Mul(dcell, g), hn::Mul(i, hn::Sub(one, i))), 0);
    put(hn::Mul(hn::Mul(dcell, at(before)), hn::Mul(f, hn::Sub(one, f))), 1);
    put(hn::Mul(hn::Mul(dcell, i), hn::NegMulAdd(g, g, one)), 2);
    put(hn::Mul(hn::Mul(slope, squashed), hn::Mul(o, hn::Sub(one, o))), 3);
    store_up_to(d, hn::Mul(dcell, f), dc + k, count);
  }
}

// (7)
HWY_INLINE void through_weight(const Matrix<float>& weight, const float* da, float* dh) {
  const Tag d;
  const int64_t e = weight.columns;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  std::fill_n(dh, e, 0.0f);
  for (int64_t r = 0; r < weight.rows; ++r) {
    const auto slope = hn::Set(d, da[r]);
    for (int64_t k = 0; k < e; k += lanes) {
      const auto count = static_cast<size_t>(e - k);
      store_up_to(d, hn::MulAdd(slope, load_up_to(d, weight[r] + k, count), load_up_to(d, dh + k, count)), dh + k,
                  count);
    }
  }
}

void lstm_backward(const LstmBackward& args, Threads& threads) {
  const auto weight = args.weight.matrix<float>(), gates = args.gates.matrix<float>(),
             cells = args.cells.matrix<float>(), y = args.y.matrix<float>(), h = args.h.matrix<float>(),
             c = args.c.matrix<float>(), dy = args.dy.matrix<float>(), dnew_h = args.dnew_h.matrix<float>(),
             dnew_c = args.dnew_c.matrix<float>(), dx = args.dx.matrix<float>(), first_dh = args.dh.matrix<float>(),
             first_dc = args.dc.matrix<float>();
  const int64_t e = y.columns;
  if (first_dh) dnew_h ? args.dh.copy_from(args.dnew_h) : args.dh.fill_zero();  // of slots that nobody advanced
  if (first_dc) dnew_c ? args.dc.copy_from(args.dnew_c) : args.dc.fill_zero();
  const Tensor before = args.dweight ? Tensor::zeros(args.y.shape(), DType::f32) : Tensor();  // h_{t-1} of each row
  const auto last_h = before.matrix<float>();
  threads.parallel(args.seqs.count(), [&](int64_t s, int) {
    const int64_t slot = args.seqs.slots[static_cast<size_t>(s)], begin = args.seqs.offsets[static_cast<size_t>(s)],
                  end = begin + args.seqs.length(s);
    const std::vector<float> zeros(static_cast<size_t>(e), 0.0f);
    std::vector<float> dh(zeros), dc(zeros);
    if (dnew_h) std::copy_n(dnew_h[slot], e, dh.data());
    if (dnew_c) std::copy_n(dnew_c[slot], e, dc.data());
    for (int64_t t = end; t-- > begin;) {
      const float* cell_before = t > begin ? cells[t - 1] : c ? c[slot] : zeros.data();
      retreat(e, gates[t], cells[t], cell_before, dy[t], dh.data(), dc.data(), dx[t]);
      through_weight(weight, dx[t], dh.data());
      if (last_h && (t > begin || h)) std::copy_n(t > begin ? y[t - 1] : h[slot], e, last_h[t]);
    }
    if (first_dh) std::copy_n(dh.data(), e, first_dh[slot]);
    if (first_dc) std::copy_n(dc.data(), e, first_dc[slot]);
  });
  if (args.dweight)
    gemm(dx, Transpose::yes, last_h, Transpose::no, args.dweight.matrix<float>(), false, threads);  // (8)
  if (!args.dbias) return;
  args.dbias.fill_zero();
  float* dbias = args.dbias.data<float>();
  for (int64_t t = 0; t < dx.rows; ++t)
    for (int64_t r = 0; r < dx.columns; ++r) dbias[r] += dx[t][r];
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(lstm_forward);
HWY_EXPORT(lstm_backward);

void lstm_forward(const LstmForward& args, Threads& threads) { HWY_DYNAMIC_DISPATCH(lstm_forward)(args, threads); }
void lstm_backward(const LstmBackward& args, Threads& threads) { HWY_DYNAMIC_DISPATCH(lstm_backward)(args, threads); }
}  // namespace ssm::cpu
#endif
