// adamw, with its norm, against the bandwidth of memory: 32 bytes an element.
#include "bench/harness.h"
#include "ops/adamw/adamw.h"

namespace ssm::bench {

void bench_adamw(Bench& bench) {
  const Shape shape = {int64_t{1} << 24};
  const AdamWStep step{.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1, .step = 3};
  const Tensor gradient = random("gradient", shape);
  const auto run = [&](const Ctx& ctx, const Tensor& value, const Tensor& m, const Tensor& v) {
    const AdamWItem item{.value = value, .gradient = gradient, .m = m, .v = v, .copy = {}, .weight_decay = 0.1};
    adamw(ctx, std::span(&item, 1), step);
    return value;
  };
  const auto fresh = [&](const Ctx& ctx) {
    return run(ctx, random("value", shape), random("m", shape), random("v", shape, 0, 1));
  };
  bench.check(fresh(bench.ctx()), fresh(bench.ref()), 1e-6, "adamw");
  const Tensor value = random("value", shape), m = random("m", shape), v = random("v", shape, 0, 1);
  const Timing timing = time([&] { run(bench.ctx(), value, m, v); });
  bench.add({.group = "op",
             .name = "adamw",
             .shape = text(shape[0]),
             .timing = timing,
             .rate = 32.0 * static_cast<double>(shape[0]) / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.read_bandwidth() / 1e9,
             .limit_name = "read memory"});
}

}  // namespace ssm::bench
