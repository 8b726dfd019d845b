// rms_norm with the residual add against the bandwidth of memory: 16 bytes an element.
#include "bench/harness.h"
#include "ops/rms_norm/rms_norm.h"

namespace ssm::bench {

void bench_rms_norm(Bench& bench) {
  for (const int64_t t : {512, 16384}) {
    const int64_t d = 768;
    const Var x{random("x", {t, d}), {}}, residual{random("residual", {t, d}), {}}, weight{random("weight", {d}), {}};
    const auto run = [&](const Ctx& ctx) { return rms_norm(ctx, x, residual, weight, 1e-5).y.value; };
    bench.check(run(bench.ctx()), run(bench.ref()), 1e-5, "rms_norm");
    const Timing timing = time([&] { run(bench.ctx()); });
    bench.add({.group = "op",
               .name = "rms_norm forward",
               .shape = text(t, " x ", d),
               .timing = timing,
               .rate = 16.0 * static_cast<double>(t * d) / timing.median / 1e9,
               .unit = "GB/s",
               .limit = bench.read_bandwidth() / 1e9,
               .limit_name = "read memory"});
  }
}

}  // namespace ssm::bench
