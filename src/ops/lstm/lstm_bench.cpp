// lstm forward: one sequence, which one thread works through row by row, and several. The first rows are compared with
// f64 before anything is timed.
#include <algorithm>

#include "bench/harness.h"
#include "ops/lstm/lstm.h"

namespace ssm::bench {
namespace {

void bench_case(Bench& bench, int64_t sequences, int64_t length, int64_t e) {
  const std::string shape = text(sequences, " x ", length, " x ", e);
  if (!bench.wanted("lstm forward", shape)) return;
  const int64_t t = sequences * length;
  const Seqs seqs = Seqs::dense(sequences, length);
  const LstmForward in{.x = bench.random("x", {t, 4 * e}),
                       .weight = bench.random_f32("weight", {4 * e, e}, -0.05, 0.05),
                       .bias = {},
                       .seqs = seqs,
                       .h = {},
                       .c = {},
                       .y = bench.empty({t, e}),
                       .gates = {},
                       .cells = {}};
  SSM_RUN(bench.device(), bench.threads(), lstm_forward, in);
  const int64_t rows = std::min<int64_t>(4, length);
  const Seqs first = Seqs::dense(1, rows);
  const LstmForward exact{.x = exact_copy(in.x.rows(0, rows)),
                          .weight = exact_copy(in.weight),
                          .bias = {},
                          .seqs = first,
                          .h = {},
                          .c = {},
                          .y = Tensor::empty({rows, e}, DType::f64),
                          .gates = {},
                          .cells = {}};
  ref::lstm_forward(exact, bench.threads());
  bench.check(in.y.rows(0, rows), exact.y, bench.tolerance(1e-5), "lstm");
  const Timing timing = bench.time([&] { SSM_RUN(bench.device(), bench.threads(), lstm_forward, in); }, 1);
  bench.add({.group = "op",
             .name = "lstm forward",
             .shape = shape,
             .timing = timing,
             .rate = static_cast<double>(8 * t * e * e) / timing.median / 1e9,
             .unit = "GFLOPS"});
}

}  // namespace

void bench_lstm(Bench& bench) {
  if (bench.on_gpu()) {
    for (const int64_t sequences : {1, 8, 32}) bench_case(bench, sequences, 512, 768);
    return;
  }
  for (const int64_t sequences : {1, 8}) bench_case(bench, sequences, 256, 128);
  bench_case(bench, 2, 64, 768);
}

}  // namespace ssm::bench
