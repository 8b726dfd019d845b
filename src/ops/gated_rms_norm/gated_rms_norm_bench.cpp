// gated_rms_norm against the bandwidth of memory: 12 bytes an element.
#include "bench/harness.h"
#include "ops/gated_rms_norm/gated_rms_norm.h"

namespace ssm::bench {

void bench_gated_rms_norm(Bench& bench) {
  for (const int64_t t : {1, 512, 16384}) {
    const int64_t e = 1536;
    const Var y{random("y", {t, e}), {}}, z{random("z", {t, e}), {}}, weight{random("weight", {e}), {}};
    const auto run = [&](const Ctx& ctx) {
      return gated_rms_norm(ctx, y, z, weight, 1, 1e-5, GateOrder::gate_first).value;
    };
    bench.check(run(bench.ctx()), run(bench.ref()), 1e-5, "gated_rms_norm");
    const Timing timing = time([&] { run(bench.ctx()); });
    bench.add({.group = "op",
               .name = "gated_rms_norm forward",
               .shape = text(t, " x ", e),
               .timing = timing,
               .rate = 12.0 * static_cast<double>(t * e) / timing.median / 1e9,
               .unit = "GB/s",
               .limit = bench.read_bandwidth() / 1e9,
               .limit_name = "read memory"});
  }
}

}  // namespace ssm::bench
