// conv1d with SIMD over channels and threads over blocks of rows and channels. The gradients of weight and bias are
// summed within a block of rows first and over the blocks in order last, so they do not depend on the number of
// threads. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/conv1d/conv1d_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "ops/conv1d/conv1d.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// A task is a block of kRows x kChannels: the rows that a group reads and writes and the taps of 512 channels are 30
// KB, which stay in the first-level cache from group to group.
constexpr int64_t kRows = 64, kChannels = 512;
// Rows of scratch lie a cache line off multiples of 2 KB. At such multiples they would fall into the same few cache
// sets, and a load of one row would wait for a store to another whose address has the same low 12 bits.
constexpr int64_t kStride = kChannels + 16;
// Rows computed together, so that a tap is loaded once for all.
constexpr int kGroup = 4;
// Below this many outputs (about 10 us of work) waking a thread costs more than it brings: decoding.
constexpr int64_t kOneTask = 16384;

template <int R>
using Rows = std::integral_constant<int, R>;

// Calls body(s, p, t, rows) for groups that cover the rows [begin, end): `rows` rows (a constant) from row t on, which
// is position p of sequence s.
template <class Body>
HWY_INLINE void for_groups(const Seqs& seqs, int64_t begin, int64_t end, const Body& body) {
  auto next = std::upper_bound(seqs.offsets.begin(), seqs.offsets.end(), begin);  // the end of begin's sequence
  for (int64_t t = begin; t < end;) {
    while (*next <= t) ++next;
    const int64_t s = next - seqs.offsets.begin() - 1, start = *(next - 1);
    const int64_t run = std::min(end, *next);
    for (; t + kGroup <= run; t += kGroup) body(s, t - start, t, Rows<kGroup>());
    for (; t < run; ++t) body(s, t - start, t, Rows<1>());
  }
}

// Calls body(c, count) for vectors that cover the channels [begin, end); count is constant but for the last.
template <class D, class Body>
HWY_INLINE void for_vectors(D d, size_t begin, size_t end, const Body& body) {
  const size_t lanes = hn::Lanes(d);
  for (; begin + lanes <= end; begin += lanes) body(begin, lanes);
  if (begin < end) body(begin, end - begin);
}

// What the kernels read beside their rows.
struct Filter {
  Tensor taps, reversed;  // (w, e): weight transposed; and with the last tap first, for (8)
  Tensor zeros;           // (e): a row outside the sequence
  const float* bias;      // (e) or null
  ConvInputs<const float> inputs;
  int64_t w, e;

  template <class Args>
  explicit Filter(const Args& args)
      : taps(Tensor::empty({args.weight.size(1), args.weight.size(0)}, DType::f32)),
        zeros(Tensor::zeros({args.weight.size(0)}, DType::f32)),
        bias(args.bias.template data<float>()),
        inputs{{}, args.state.template data<float>(), args.seqs, args.weight.size(1) - 1},
        w(args.weight.size(1)),
        e(args.weight.size(0)) {
    const auto x = args.x.template matrix<float>();
    inputs.x = {x.data, x.rows, x.columns, x.stride};
    const auto from = args.weight.template matrix<float>(), to = taps.template matrix<float>();
    for (int64_t k = 0; k < w; ++k)
      for (int64_t c = 0; c < e; ++c) to[k][c] = from[c][k];
  }

  // The rows of X that outputs p, p + 1, ... of sequence s read.
  void find_inputs(int64_t s, int64_t p, int64_t count, const float** rows) const {
    for (int64_t j = 0; j < count; ++j) {
      const float* row = inputs.row(s, p + j);
      rows[j] = row ? row : zeros.data<float>();
    }
  }
};

// sum_r += sum_k taps_k rows_{r+k} for R consecutive rows and the channels from c on: (2), and (8) with the taps
// reversed.
template <int R, class D>
HWY_INLINE void correlate(D d, const float* const* rows, const float* taps, int64_t w, int64_t e, size_t c,
                          size_t count, hn::Vec<D>* sums) {
  for (int64_t k = 0; k < w; ++k) {
    const auto tap = load_up_to(d, taps + k * e + static_cast<int64_t>(c), count);
    for (int r = 0; r < R; ++r) sums[r] = hn::MulAdd(load_up_to(d, rows[k + r] + c, count), tap, sums[r]);
  }
}

// (4). `state` and `new_state` may be the same rows: each is read before it is written.
void advance_state(const Conv1dForward& args, const ConvInputs<const float>& inputs, Threads& threads) {
  const Seqs& seqs = args.seqs;
  const int64_t carried = inputs.carried, e = inputs.x.columns;
  const int64_t group = std::max<int64_t>(1, kOneTask / (carried * e));  // sequences of a task
  threads.parallel((seqs.count() + group - 1) / group, [&](int64_t task, int) {
    for (int64_t s = task * group; s < std::min(seqs.count(), (task + 1) * group); ++s) {
      float* to = args.new_state.data<float>() + seqs.slots[static_cast<size_t>(s)] * carried * e;
      for (int64_t j = 0; j < carried; ++j, to += e)
        std::memmove(to, inputs.row(s, seqs.length(s) + j), static_cast<size_t>(e) * sizeof(float));
    }
  });
}

void conv1d_forward(const Conv1dForward& args, Threads& threads) {
  const auto y = args.y.matrix<float>();
  const Filter filter(args);
  const float* taps = filter.taps.data<float>();
  const bool silu_after = args.activation == Activation::silu;
  const int64_t channels = y.rows * y.columns <= kOneTask ? y.columns : kChannels;
  const int64_t across = (y.columns + channels - 1) / channels;
  const hn::ScalableTag<float> d;
  threads.parallel((y.rows + kRows - 1) / kRows * across, [&](int64_t task, int) {
    const int64_t first = task / across * kRows;
    const auto begin = static_cast<size_t>(task % across * channels);
    const auto end = std::min(static_cast<size_t>(y.columns), begin + static_cast<size_t>(channels));
    std::vector<const float*> rows(static_cast<size_t>(filter.w + kGroup));
    for_groups(args.seqs, first, std::min(y.rows, first + kRows), [&](int64_t s, int64_t p, int64_t t, auto group) {
      filter.find_inputs(s, p, group + filter.w - 1, rows.data());
      for_vectors(d, begin, end, [&](size_t c, size_t count) {
        hn::Vec<decltype(d)> v[group];
        for (auto& one : v) one = filter.bias ? load_up_to(d, filter.bias + c, count) : hn::Zero(d);
        correlate<group>(d, rows.data(), taps, filter.w, filter.e, c, count, v);
        for (int r = 0; r < group; ++r) store_up_to(d, silu_after ? silu(d, v[r]) : v[r], y[t + r] + c, count);  // (3)
      });
    });
  });
  if (args.new_state) advance_state(args, filter.inputs, threads);
}

// (5) for the rows [first, last) and the channels [begin, end), into `g`. With `sums`, also adds (6) and
// (7) to its rows: w for the taps, then one for the bias. Both hold the channels from `begin` on.
void slopes(const Filter& filter, const Conv1dBackward& args, int64_t first, int64_t last, size_t begin, size_t end,
            const Matrix<float>& g, const Matrix<float>& sums) {
  const auto dy = args.dy.matrix<float>();
  const float* taps = filter.taps.data<float>();
  const bool silu_after = args.activation == Activation::silu;
  std::vector<const float*> rows(static_cast<size_t>(filter.w + kGroup));
  const hn::ScalableTag<float> d;
  const auto one = hn::Set(d, 1.0f);
  for_groups(args.seqs, first, last, [&](int64_t s, int64_t p, int64_t t, auto group) {
    filter.find_inputs(s, p, group + filter.w - 1, rows.data());
    for_vectors(d, begin, end, [&](size_t c, size_t count) {
      hn::Vec<decltype(d)> slope[group];
      for (int r = 0; r < group; ++r) slope[r] = load_up_to(d, dy[t + r] + c, count);
      if (silu_after) {
        hn::Vec<decltype(d)> v[group];
        for (auto& value : v) value = filter.bias ? load_up_to(d, filter.bias + c, count) : hn::Zero(d);
        correlate<group>(d, rows.data(), taps, filter.w, filter.e, c, count, v);
        for (int r = 0; r < group; ++r) {
          const auto sig = sigmoid(d, v[r]);
          slope[r] = hn::Mul(slope[r], hn::Mul(sig, hn::MulAdd(v[r], hn::Sub(one, sig), one)));
        }
      }
      for (int r = 0; r < group; ++r) store_up_to(d, slope[r], g[t - first + r] + c - begin, count);
      if (!sums) return;
      const size_t at = c - begin;
      for (int64_t k = 0; k < filter.w; ++k) {  // (6)
        auto sum = load_up_to(d, sums[k] + at, count);
        for (int r = 0; r < group; ++r)
          sum = hn::MulAdd(slope[r], load_up_to(d, rows[static_cast<size_t>(k + r)] + c, count), sum);
        store_up_to(d, sum, sums[k] + at, count);
      }
      auto sum = load_up_to(d, sums[filter.w] + at, count);  // (7)
      for (int r = 0; r < group; ++r) sum = hn::Add(sum, slope[r]);
      store_up_to(d, sum, sums[filter.w] + at, count);
    });
  });
}

// The slopes of a sequence: position p is row origin + p of `rows`, for p in [from, to). The others are not there.
struct Slopes {
  Matrix<float> rows;
  int64_t origin, from, to;
};

// (8) for rows i, i + 1, ... of X^s (R of them), whose gradients as part of the new state are in args.dnew_state.
template <int R>
void input_gradients(const Filter& filter, const Conv1dBackward& args, int64_t s, int64_t i, const Slopes& g,
                     size_t begin, size_t end, float* const* out, const float** rows) {
  // g is read from channel begin on, and so are the zeros.
  for (int64_t j = 0; j < R + filter.w - 1; ++j) {
    const int64_t p = i - (filter.w - 1) + j;
    rows[j] = g.from <= p && p < g.to ? g.rows[g.origin + p] : filter.zeros.data<float>();
  }
  const float* dnew[R];
  for (int r = 0; r < R; ++r) {
    const int64_t kept = i + r - args.seqs.length(s), slot = args.seqs.slots[static_cast<size_t>(s)];
    dnew[r] = args.dnew_state && kept >= 0
                  ? args.dnew_state.data<float>() + (slot * (filter.w - 1) + kept) * filter.e + begin
                  : nullptr;
  }
  const float* taps = filter.reversed.data<float>() + begin;
  const hn::ScalableTag<float> d;
  for_vectors(d, 0, end - begin, [&](size_t c, size_t count) {
    hn::Vec<decltype(d)> sums[R];
    for (int r = 0; r < R; ++r) sums[r] = dnew[r] ? load_up_to(d, dnew[r] + c, count) : hn::Zero(d);
    correlate<R>(d, rows, taps, filter.w, filter.e, c, count, sums);
    for (int r = 0; r < R; ++r) store_up_to(d, sums[r], out[r] + c, count);
  });
}

// Rows of dstate: the slots of sequences by (8), the others as they came.
void state_gradient(const Conv1dBackward& args, const Filter& filter, Threads& threads) {
  args.dnew_state ? args.dstate.copy_from(args.dnew_state) : args.dstate.fill_zero();
  const Seqs& seqs = args.seqs;
  const int64_t carried = filter.w - 1, e = filter.e;
  const auto all = static_cast<size_t>(e);
  const Tensor scratch = Tensor::empty({threads.count(), carried * e}, DType::f32);
  threads.parallel(seqs.count(), [&](int64_t s, int worker) {
    const int64_t begin = seqs.offsets[static_cast<size_t>(s)], reach = std::min(carried, seqs.length(s));
    if (reach == 0) return;
    const Matrix<float> g{scratch.matrix<float>()[worker], carried, e, e};
    slopes(filter, args, begin, begin + reach, 0, all, g, {});
    std::vector<const float*> rows(static_cast<size_t>(filter.w));
    float* out = args.dstate.data<float>() + seqs.slots[static_cast<size_t>(s)] * carried * e;
    for (int64_t i = 0; i < carried; ++i, out += e)
      input_gradients<1>(filter, args, s, i, {g, 0, 0, reach}, 0, all, &out, rows.data());
  });
}

void conv1d_backward(const Conv1dBackward& args, Threads& threads) {
  const auto dx = args.dx.matrix<float>();
  Filter filter(args);
  const int64_t t_count = args.dy.size(0), e = filter.e, w = filter.w, carried = w - 1;
  filter.reversed = Tensor::empty({w, e}, DType::f32);
  for (int64_t k = 0; k < w; ++k) filter.reversed.rows(k, k + 1).copy_from(filter.taps.rows(carried - k, w - k));
  const int64_t down = (t_count + kRows - 1) / kRows, across = (e + kChannels - 1) / kChannels;
  const bool summing = args.dweight || args.dbias;
  const Tensor partial = summing ? Tensor::zeros({std::max<int64_t>(down, 1) * (w + 1), e}, DType::f32) : Tensor();
  // Of a task: the slopes of its rows and of the w - 1 after them, which dx needs and which are computed twice; its
  // sums.
  const int64_t slope_rows = kRows + carried;
  const Tensor scratch = Tensor::empty({threads.count(), slope_rows + w + 1, kStride}, DType::f32);
  threads.parallel(down * across, [&](int64_t task, int worker) {
    const int64_t block = task / across, first = block * kRows, last = std::min(t_count, first + kRows);
    const auto begin = static_cast<size_t>(task % across * kChannels);
    const auto end = std::min(static_cast<size_t>(e), begin + static_cast<size_t>(kChannels));
    float* mine = scratch.data<float>() + worker * (slope_rows + w + 1) * kStride;
    const Matrix<float> g{mine, slope_rows, kChannels, kStride};
    const Matrix<float> sums{summing ? g[slope_rows] : nullptr, w + 1, kChannels, kStride};
    if (summing) std::fill_n(sums.data, sums.rows * kStride, 0.0f);
    slopes(filter, args, first, last, begin, end, g, sums);
    for (int64_t k = 0; k <= w && summing; ++k)
      std::copy_n(sums[k], end - begin, partial.matrix<float>()[block * (w + 1) + k] + begin);
    if (!dx) return;
    const int64_t beyond = std::min(t_count, last + carried);
    slopes(filter, args, last, beyond, begin, end, {g[last - first], carried, kChannels, kStride}, {});
    std::vector<const float*> rows(static_cast<size_t>(w + kGroup));
    for_groups(args.seqs, first, last, [&](int64_t s, int64_t p, int64_t t, auto group) {
      const Slopes slopes_of_s{g, t - first - p, p, std::min(args.seqs.length(s), p + beyond - t)};
      float* out[group];
      for (int r = 0; r < group; ++r) out[r] = dx[t + r] + begin;
      input_gradients<group>(filter, args, s, p + carried, slopes_of_s, begin, end, out, rows.data());
    });
  });
  if (args.dstate) state_gradient(args, filter, threads);
  if (!summing) return;
  const auto sums = partial.matrix<float>();
  for (int64_t block = 1; block < down; ++block)
    partial.rows(0, w + 1).add(partial.rows(block * (w + 1), (block + 1) * (w + 1)));
  if (args.dbias) std::copy_n(sums[w], e, args.dbias.data<float>());
  if (!args.dweight) return;
  const auto dweight = args.dweight.matrix<float>();
  for (int64_t c = 0; c < e; ++c)
    for (int64_t k = 0; k < w; ++k) dweight[c][k] = sums[k][c];
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(conv1d_forward);
HWY_EXPORT(conv1d_backward);

void conv1d_forward(const Conv1dForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(conv1d_forward)(args, threads);
}

void conv1d_backward(const Conv1dBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(conv1d_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
