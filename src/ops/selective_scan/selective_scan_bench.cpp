// selective_scan: time a (token, channel), forward and backward, against the plain definition.
#include "bench/harness.h"
#include "ops/selective_scan/selective_scan.h"

namespace ssm::bench {
namespace {

// One after the other: neither brings threads of its own, so no pause is needed between them, and a pause would put our
// threads to sleep, which is what a single token would then measure.
std::pair<Timing, Timing> time_both(const std::function<void()>& a, const std::function<void()>& b) {
  const Timing first = time(a);
  return {first, time(b)};
}

}  // namespace

void bench_selective_scan(Bench& bench) {
  struct Case {
    int64_t sequences, length, e, n;
  };
  for (const Case& c : {Case{1, 512, 1536, 16}, Case{8, 256, 768, 16}, Case{1, 1, 1536, 16}, Case{1, 512, 1536, 64}}) {
    const int64_t t = c.sequences * c.length;
    const Seqs seqs = Seqs::dense(c.sequences, c.length);
    const Tensor dout = random("dout", {t, c.e});
    Tape tape;
    const auto input = [&](const char* name, const Shape& shape, double low, double high) {
      return tape.variable(random(name, shape, low, high));
    };
    const ScanIn in{.x = input("x", {t, c.e}, -1, 1),
                    .dt = input("dt", {t, c.e}, -5, -2),
                    .A_log = input("A_log", {c.e, c.n}, 0, 2.7),
                    .B = input("B", {t, c.n}, -1, 1),
                    .C = input("C", {t, c.n}, -1, 1),
                    .D = input("D", {c.e}, -1, 1),
                    .dt_bias = input("dt_bias", {c.e}, -1, 1),
                    .z = input("z", {t, c.e}, -2, 2)};
    bench.check(selective_scan(bench.ctx(), in, seqs, nullptr).value,
                selective_scan(bench.ref(), in, seqs, nullptr).value, 1e-5, "selective_scan");
    const auto elements = static_cast<double>(t * c.e);
    const std::string shape = text(c.sequences, " x ", c.length, " x ", c.e, " n ", c.n);
    const auto [forward, definition] = time_both([&] { selective_scan(bench.ctx(), in, seqs, nullptr); },
                                                 [&] { selective_scan(bench.ref(), in, seqs, nullptr); });
    bench.add({.group = "op",
               .name = "selective_scan forward",
               .shape = shape,
               .timing = forward,
               .rate = elements / forward.median / 1e6,
               .unit = "M elem/s",
               .rival = elements / definition.median / 1e6,
               .rival_name = "ref"});
    // The forward under a tape is part of a backward's cost; it is taken off.
    const auto forget = [&] {
      for (const Var* var : {&in.x, &in.dt, &in.A_log, &in.B, &in.C, &in.D, &in.dt_bias, &in.z})
        var->grad->written = false;
    };
    const auto [recorded, both] = time_both(
        [&] {
          Tape unused;
          selective_scan(bench.ctx(&unused), in, seqs, nullptr);
        },
        [&] {
          forget();
          Tape fresh;
          const Var out = selective_scan(bench.ctx(&fresh), in, seqs, nullptr);
          fresh.backward({{out, dout}});
        });
    Timing backward = both;
    backward.median -= recorded.median, backward.fastest -= recorded.fastest, backward.slowest -= recorded.slowest;
    bench.add({.group = "op",
               .name = "selective_scan backward",
               .shape = shape,
               .timing = backward,
               .rate = elements / backward.median / 1e6,
               .unit = "M elem/s",
               .rival = elements / forward.median / 1e6,
               .rival_name = "its forward"});
  }
}

}  // namespace ssm::bench
