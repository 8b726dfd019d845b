// conv1d with SiLU, forward, against the bandwidth of memory: it reads and writes 4 bytes an element.
#include "bench/harness.h"
#include "ops/conv1d/conv1d.h"

namespace ssm::bench {

void bench_conv1d(Bench& bench) {
  for (const int64_t t : {512, 8192}) {
    const int64_t e = 1536;
    const Var x{random("x", {t, e}), {}}, weight{random("weight", {e, 1, 4}), {}}, bias{random("bias", {e}), {}};
    const Seqs seqs = Seqs::dense(1, t);
    const auto run = [&](const Ctx& ctx) {
      return conv1d(ctx, x, weight, bias, Activation::silu, seqs, nullptr).value;
    };
    bench.check(run(bench.ctx()), run(bench.ref()), 1e-5, "conv1d");
    const Timing timing = time([&] { run(bench.ctx()); });
    bench.add({.group = "op",
               .name = "conv1d silu forward",
               .shape = text(t, " x ", e),
               .timing = timing,
               .rate = 8.0 * static_cast<double>(t * e) / timing.median / 1e9,
               .unit = "GB/s",
               .limit = bench.read_bandwidth() / 1e9,
               .limit_name = "read memory"});
  }
}

}  // namespace ssm::bench
