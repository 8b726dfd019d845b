// adamw, with its norm, against the bandwidth of memory: 32 bytes an element, and 2 more where the model has a copy in
// 2 bytes, as on a GPU. By the clock there too: it returns the norm, so it waits.
#include <algorithm>

#include "bench/harness.h"
#include "ops/adamw/adamw.h"

namespace ssm::bench {

void bench_adamw(Bench& bench) {
  const std::string name = "adamw";
  const Shape shape = {int64_t{1} << (bench.on_gpu() ? 27 : 24)};
  if (!bench.wanted(name, text(shape[0]))) return;
  const AdamWStep step{.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1, .step = 3};
  const AdamWItem ours{.value = bench.random_f32("value", shape),
                       .gradient = bench.random_f32("gradient", shape),
                       .m = bench.random_f32("m", shape),
                       .v = bench.random_f32("v", shape, 0, 1),
                       .copy = bench.dtype() == DType::f32 ? Tensor() : bench.empty(shape),
                       .weight_decay = 0.1};
  // The norm is of all elements, the rest of the first and the last.
  const int64_t count = shape[0], checked = std::min<int64_t>(count, 1 << 16);
  const double scale = step.scale(std::sqrt(ref::sum_of_squares(exact_copy(ours.gradient), bench.threads())));
  std::vector<AdamWItem> expected;
  for (const int64_t begin : {int64_t{0}, count - checked}) {
    const auto part = [&](const Tensor& of) { return exact_copy(of.rows(begin, begin + checked)); };
    expected.push_back({.value = part(ours.value),
                        .gradient = part(ours.gradient),
                        .m = part(ours.m),
                        .v = part(ours.v),
                        .copy = {},
                        .weight_decay = ours.weight_decay});
    ref::adamw_update(expected.back(), step, scale, bench.threads());
  }
  const auto run = [&] { adamw(bench.ctx(), std::span(&ours, 1), step); };
  run();
  bench.check(ours.value.rows(0, checked), expected[0].value, 1e-6, name);
  bench.check(ours.value.rows(count - checked, count), expected[1].value, 1e-6, name);
  if (ours.copy) bench.check(ours.copy.rows(0, checked), expected[0].value, bench.tolerance(1e-6), "adamw, copy");

  const Timing timing = time(run);
  const auto bytes = static_cast<double>(count * (32 + (ours.copy ? bytes_of(bench.dtype()) : 0)));
  bench.add({.group = "op",
             .name = name,
             .shape = text(count),
             .timing = timing,
             .rate = bytes / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.bandwidth() / 1e9,
             .limit_name = bench.bandwidth_name()});
}

}  // namespace ssm::bench
