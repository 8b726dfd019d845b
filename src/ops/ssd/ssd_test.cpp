#include "ops/ssd/ssd.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

enum class SkipForm { none, of_heads, of_channels };  // D

struct Sizes {
  std::vector<int64_t> lengths;
  int64_t m, p, g, n;
  bool with_state = true, with_bias = true;
  SkipForm D = SkipForm::of_heads;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};

OpCase ssd_case(const Sizes& sizes) {
  const int64_t t = std::accumulate(sizes.lengths.begin(), sizes.lengths.end(), int64_t{0});
  const auto count = static_cast<int64_t>(sizes.lengths.size());
  const int64_t m = sizes.m, p = sizes.p, g = sizes.g, n = sizes.n;
  std::vector<int64_t> slots;
  for (int64_t s = 0; s < count; ++s) slots.push_back(count - s);  // permuted, and slot 0 belongs to nobody
  const Seqs seqs = Seqs::ragged(sizes.lengths, slots);
  const Shape none, D = sizes.D == SkipForm::none ? none : Shape{sizes.D == SkipForm::of_heads ? m : m * p};
  return {.name = text("ssd of ", count, " sequences, t=", t, " m=", m, " p=", p, " g=", g, " n=", n),
          .inputs = {{"x", {t, m * p}},
                     {"dt", {t, m}, -3, 1},
                     {"A_log", {m}, -1, 1.5},
                     {"B", {t, g * n}},
                     {"C", {t, g * n}},
                     {"D", D},
                     {"dt_bias", sizes.with_bias ? Shape{m} : none},
                     {"state", sizes.with_state ? Shape{count + 1, m, n, p} : none}},
          .call =
              [=](Ctx& ctx, const std::vector<Var>& in) {
                Var state = in[7];
                const Var y = ssd(ctx,
                                  {.x = in[0],
                                   .dt = in[1],
                                   .A_log = in[2],
                                   .B = in[3],
                                   .C = in[4],
                                   .D = in[5],
                                   .dt_bias = in[6],
                                   .groups = g,
                                   .dt_min = sizes.dt_min,
                                   .dt_max = sizes.dt_max},
                                  seqs, state ? &state : nullptr);
                return std::vector<Var>{y, state};
              },
          .reduction = std::max(t, m * p) * 4};
}

TEST(Ssd, EveryDeviceAgreesOnUglySizes) {
  check_op(ssd_case({{1}, 1, 1, 1, 1}));
  check_op(ssd_case({{5}, 2, 3, 1, 2, false}));
  check_op(ssd_case({{2, 0, 7, 1}, 6, 5, 3, 4}));
  check_op(ssd_case({{9}, 4, 1, 4, 3, true, false, SkipForm::none}));
  check_op(ssd_case({{11, 3}, 4, 24, 4, 4, true, true, SkipForm::of_channels}));
  check_op(ssd_case({{23}, 2, 17, 2, 1}));
  check_cpu(ssd_case({{6}, 2, 9, 1, 256}));
  check_cpu(ssd_case({{33, 70}, 4, 64, 2, 128}));
}

}  // namespace
}  // namespace ssm::test
