#include "ops/attention/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

using Lengths = std::vector<int64_t>;

struct AttentionCase {
  Lengths lengths;
  int64_t heads, groups, p;
  bool alibi = false;
  Lengths slots = {}, counts = {};  // empty: no state; counts of all slots
  int64_t capacity = 0;
  bool one_matrix = false;  // q, k, v are columns of one matrix
  double scale = 0.7;
  int64_t wider = 0;  // v is the first columns of a matrix wider by this
};

OpCase op_case(const AttentionCase& c) {
  const Seqs seqs = Seqs::ragged(c.lengths, c.slots);
  const int64_t t = seqs.tokens(), queries = c.heads * c.p, keys = c.groups * c.p;
  const bool with_state = !c.slots.empty();
  const auto slots = static_cast<int64_t>(c.counts.size());
  std::vector<OpInput> inputs;
  if (c.one_matrix)
    inputs = {{"qkv", {t, queries + 2 * keys}, -2, 2}};
  else
    inputs = {{"q", {t, queries}, -2, 2}, {"k", {t, keys}, -2, 2}, {"v", {t, keys + c.wider}}};
  inputs.push_back({"kv", with_state ? Shape{slots, c.capacity, 2 * keys} : Shape{}, -1, 1});
  int64_t longest = 0;
  for (size_t s = 0; s < c.lengths.size(); ++s)
    longest = std::max(longest, c.lengths[s] + (with_state ? c.counts[static_cast<size_t>(c.slots[s])] : 0));
  return {
      .name = text("attention t=", t, " sequences=", seqs.count(), " heads=", c.heads, "/", c.groups, " p=", c.p,
                   with_state ? " with state" : "", c.alibi ? " alibi" : ""),
      .inputs = std::move(inputs),
      .call =
          [c, seqs, queries, keys, with_state, slots](Ctx& ctx, const std::vector<Var>& in) {
            auto qkv = c.one_matrix ? split(ctx, in[0], {queries, keys, keys}) : std::vector<Var>{in[0], in[1], in[2]};
            if (c.wider) qkv[2] = split(ctx, qkv[2], {keys, c.wider})[0];
            Var kv = in.back(), counts;
            if (with_state) counts.value = Tensor::of(c.counts).reshape({slots, 1});
            const Var out = attention(ctx, {qkv[0], qkv[1], qkv[2], c.heads, c.groups, c.scale, c.alibi}, seqs,
                                      with_state ? &counts : nullptr, with_state ? &kv : nullptr);
            // Rows that no token counts hold nothing: the state is compared where it did not grow.
            const bool grew = with_state && kv.value.size(1) != c.capacity;
            return std::vector<Var>{out, grew ? Var{} : kv};
          },
      .reduction = std::max<int64_t>(longest, c.p),
      .bf16_gradients = 3,  // P and dS are rounded for the tensor cores: README.md
      .f16_gradients = 3};
}

// Where differences would take minutes.
void check_fast_device(const OpCase& c) {
  if (skipped_for_want_of_gpu()) return;
  test_devices().back().first.is_cuda() ? check_cuda(c) : check_cpu(c);
}

TEST(Attention, EveryDeviceAgreesOnUglySizes) {
  for (const AttentionCase& c : std::vector<AttentionCase>{
           {{1}, 1, 1, 1},
           {{2}, 1, 1, 7},
           {{5, 0, 1, 3}, 4, 2, 5},
           {{17, 4, 5}, 3, 1, 16, true, {}, {}, 0, false, 0.7, 8},
           {{33}, 2, 2, 9, true, {}, {}, 0, true},
           {{0, 0}, 2, 1, 4},
       })
    check_op(op_case(c));
  for (const AttentionCase& c :
       std::vector<AttentionCase>{{{127, 129}, 2, 1, 20},
                                  {{300}, 2, 2, 64, true},
                                  {{200, 0, 1, 65}, 4, 2, 24, false, {}, {}, 0, false, 0.7, 16},
                                  {{129, 70}, 2, 1, 128, false, {}, {}, 0, false, 0.1},
                                  {{70}, 1, 1, 136, true, {}, {}, 0, true, 0.1},
                                  {{40, 150}, 4, 2, 64, true, {2, 0}, {99, 0, 7}, 300}})
    check_fast_device(op_case(c));  // more than a tile
  // A few rows behind more keys than one range of them, of which the first of three rows does not see the last.
  for (const AttentionCase& c : std::vector<AttentionCase>{{{1, 3}, 4, 2, 7, true, {1, 0}, {1022, 511}, 1030},
                                                           {{2}, 2, 2, 16, false, {0}, {1500}, 1600}})
    check_fast_device(op_case(c));
}

TEST(Attention, EveryDeviceCarriesStateThatHasRoomOrGrows) {
  for (const AttentionCase& c : std::vector<AttentionCase>{
           {{1}, 2, 2, 3, false, {0}, {4}, 6},
           {{1, 1, 1}, 4, 2, 5, true, {2, 0, 1}, {0, 5, 3}, 6},
           {{2, 0, 3, 6}, 2, 1, 5, false, {5, 1, 0, 3}, {3, 2, 9, 0, 1, 7}, 9},
           {{9, 2}, 3, 3, 4, true, {1, 0}, {8, 0, 3}, 8, true},  // grows past 8
           {{3}, 2, 1, 4, false, {1}, {0, 0}, 0},                // from nothing
       })
    check_op(op_case(c));
}

TEST(Attention, OneKeyGivesItsValueAndLargeScoresPickOne) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    const int64_t t = 9, p = 4;
    const Tensor v = random_tensor("v", {t, p}, DType::f32), q = Tensor::zeros({t, p}, DType::f32),
                 k = Tensor::zeros({t, p}, DType::f32);
    for (int64_t i = 0; i < t; ++i) {
      q.data<float>()[i * p] = 1e4f;
      k.data<float>()[i * p] = i % 3 == 0 ? 1e4f + static_cast<float>(i) : -1e4f;
    }
    const Tensor out =
        attention(ctx, {{q, {}}, {k, {}}, {v, {}}, 1, 1, 1.0}, Seqs::dense(1, t), nullptr, nullptr).value;
    for (int64_t i = 0; i < t; ++i)  // the last multiple of 3 that it sees has by far the largest score
      for (int64_t c = 0; c < p; ++c)
        EXPECT_EQ(out.data<float>()[i * p + c], v.data<float>()[i / 3 * 3 * p + c]) << i << " " << c;
  }
}

TEST(Attention, NanIsSeenByItsRowAndLaterOnes) {
  for (const int64_t t : {3, 9}) {  // key by key, and by products
    const Ctx ctx{Device::cpu(), &test_threads()};
    const Tensor x = random_tensor("x", {t, 4}, DType::f32), k = x.clone();
    k.data<float>()[1 * 4 + 2] = std::numeric_limits<float>::quiet_NaN();
    const Tensor out =
        attention(ctx, {{x, {}}, {k, {}}, {x, {}}, 1, 1, 1.0}, Seqs::dense(1, t), nullptr, nullptr).value;
    for (int64_t i = 0; i < t; ++i) EXPECT_EQ(std::isnan(out.data<float>()[i * 4]), i >= 1) << i;
  }
}

TEST(Attention, SlopesAreThePublishedOnes) {
  EXPECT_EQ(alibi_slopes(1), (std::vector<double>{1.0 / 256}));
  EXPECT_EQ(alibi_slopes(8),
            (std::vector<double>{0.5, 0.25, 0.125, 1.0 / 16, 1.0 / 32, 1.0 / 64, 1.0 / 128, 1.0 / 256}));
  const std::vector<double> six = alibi_slopes(6),
                            expected = {1.0 / 4, 1.0 / 16, 1.0 / 64, 1.0 / 256, 1.0 / 2, 1.0 / 8};
  EXPECT_EQ(six, expected);
}

TEST(Attention, SameBitsForAnyNumberOfThreadsAndNeighbours) {
  const Lengths lengths = {150, 3, 140};
  const Seqs seqs = Seqs::ragged(lengths);
  const int64_t t = seqs.tokens(), heads = 4, groups = 2, p = 12;
  const Tensor q = random_tensor("q", {t, heads * p}, DType::f32), k = random_tensor("k", {t, groups * p}, DType::f32),
               v = random_tensor("v", {t, groups * p}, DType::f32),
               dout = random_tensor("d", {t, heads * p}, DType::f32);
  std::vector<Tensor> first;
  const auto run = [&](int threads_count, const Seqs& which, int64_t begin, int64_t end) {
    Threads threads(threads_count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    const AttentionIn in{tape.variable(q.rows(begin, end)),
                         tape.variable(k.rows(begin, end)),
                         tape.variable(v.rows(begin, end)),
                         heads,
                         groups,
                         0.3,
                         true};
    const Var out = attention(ctx, in, which, nullptr, nullptr);
    tape.backward({{out, dout.rows(begin, end)}});
    return std::vector<Tensor>{out.value, in.q.grad->value, in.k.grad->value, in.v.grad->value};
  };
  for (const int threads : {1, 2, 3}) {
    const std::vector<Tensor> found = run(threads, seqs, 0, t);
    if (first.empty()) first = found;
    for (size_t i = 0; i < found.size(); ++i) expect_near(found[i], first[i], 0, text(threads, " threads, ", i));
  }
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t begin = seqs.offsets[static_cast<size_t>(s)], end = begin + seqs.length(s);
    const std::vector<Tensor> alone = run(2, Seqs::dense(1, end - begin), begin, end);
    for (size_t i = 0; i < alone.size(); ++i)
      expect_near(alone[i], first[i].rows(begin, end), 0, text("sequence ", s, ", ", i));
  }
}

TEST(Attention, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const auto zeros = [](const Shape& shape) { return Var{Tensor::zeros(shape, DType::f32), {}}; };
  const auto call = [&](int64_t heads, int64_t groups, const Shape& k, const Shape& kv, const Lengths& counts) {
    Var state = zeros(kv), n{Tensor::of(counts).reshape({static_cast<int64_t>(counts.size()), 1}), {}};
    attention(ctx, {zeros({4, 12}), zeros(k), zeros({4, 6}), heads, groups, 1.0}, Seqs::dense(2, 2), &n, &state);
  };
  EXPECT_NO_THROW(call(4, 2, {4, 6}, {2, 5, 12}, {3, 5}));
  EXPECT_THROW(call(4, 3, {4, 6}, {2, 5, 12}, {3, 5}), Error);
  EXPECT_THROW(call(5, 1, {4, 6}, {2, 5, 12}, {3, 5}), Error);
  EXPECT_THROW(call(4, 2, {4, 5}, {2, 5, 12}, {3, 5}), Error);
  EXPECT_THROW(call(4, 2, {4, 6}, {2, 5, 11}, {3, 5}), Error);
  EXPECT_THROW(call(4, 2, {4, 6}, {1, 5, 12}, {3}), Error);
  EXPECT_THROW(call(4, 2, {4, 6}, {2, 5, 12}, {3, 6}), Error);
  EXPECT_THROW(call(4, 2, {4, 6}, {2, 5, 12}, {-1, 3}), Error);
}

}  // namespace
}  // namespace ssm::test
