// ssd: whole sequences forward and backward, on the cpu against the plain definition, on a GPU beside its rate of
// products; and single tokens, where moving the state is all there is, against the bandwidth of memory. One head of the
// first tokens of the first sequence is compared with f64; the others have no gradient then.
#include <algorithm>

#include "bench/harness.h"
#include "ops/ssd/ssd.h"

namespace ssm::bench {
namespace {

struct Case {
  int64_t sequences, length, m, p, g, n;
  std::string shape() const { return text(sequences, " x ", length, ", ", m, " x ", p, " g ", g, " n ", n); }
  int64_t tokens() const { return sequences * length; }
  double elements() const { return static_cast<double>(tokens() * m * p); }
};

SsdForward operands(const Bench& bench, const Case& c, const Seqs& seqs) {
  const int64_t t = c.tokens();
  const SsdIn limits;
  return {.x = bench.random("x", {t, c.m * c.p}),
          .dt = bench.random("dt", {t, c.m}, -5, -2),
          .A_log = bench.random_f32("A_log", {c.m}, 0, 2.7),
          .B = bench.random("B", {t, c.g * c.n}),
          .C = bench.random("C", {t, c.g * c.n}),
          .D = bench.random_f32("D", {c.m}),
          .dt_bias = bench.random_f32("dt_bias", {c.m}),
          .sizes = {.m = c.m, .p = c.p, .g = c.g, .n = c.n},
          .dt_min = limits.dt_min,
          .dt_max = limits.dt_max,
          .seqs = &seqs,
          .state = {},
          .y = bench.empty({t, c.m * c.p}),
          .starts = {}};
}

SsdBackward gradients(const SsdForward& in, const Tensor& dy) {
  const auto like = [](const Tensor& one) { return Tensor::empty(one.shape(), one.dtype(), one.device()); };
  return {.x = in.x,
          .dt = in.dt,
          .A_log = in.A_log,
          .B = in.B,
          .C = in.C,
          .D = in.D,
          .dt_bias = in.dt_bias,
          .starts = in.starts,
          .sizes = in.sizes,
          .dt_min = in.dt_min,
          .dt_max = in.dt_max,
          .seqs = in.seqs,
          .dy = dy,
          .dstate = {},
          .dx = like(in.x),
          .ddt = like(in.dt),
          .dA_log = like(in.A_log),
          .dB = like(in.B),
          .dC = like(in.C),
          .dD = like(in.D),
          .ddt_bias = like(in.dt_bias)};
}

// One head of the first rows, on the host in f64.
struct Part {
  int64_t rows, head, group;
  SsdSizes sizes;
  Tensor wide(const Tensor& x) const { return x.rows(0, rows).columns(head * sizes.p, (head + 1) * sizes.p); }
  Tensor narrow(const Tensor& dt) const { return dt.rows(0, rows).columns(head, head + 1); }
  Tensor grouped(const Tensor& B) const { return B.rows(0, rows).columns(group * sizes.n, (group + 1) * sizes.n); }
  Tensor parameter(const Tensor& A_log) const { return A_log.rows(head, head + 1); }

  SsdForward of(const SsdForward& in, const Seqs& seqs) const {
    return {.x = exact_copy(wide(in.x)),
            .dt = exact_copy(narrow(in.dt)),
            .A_log = exact_copy(parameter(in.A_log)),
            .B = exact_copy(grouped(in.B)),
            .C = exact_copy(grouped(in.C)),
            .D = exact_copy(parameter(in.D)),
            .dt_bias = exact_copy(parameter(in.dt_bias)),
            .sizes = {.m = 1, .p = sizes.p, .g = 1, .n = sizes.n},
            .dt_min = in.dt_min,
            .dt_max = in.dt_max,
            .seqs = &seqs,
            .state = {},
            .y = Tensor::empty({rows, sizes.p}, DType::f64),
            .starts = Tensor::empty({ssd_spans(seqs), 1, sizes.n, sizes.p}, DType::f64)};
  }
};

void check(const Bench& bench, const Case& c, const SsdForward& in, const SsdBackward& back) {
  constexpr int64_t kMostRows = 4096;
  const int64_t head = c.m / 2;
  const Part part{
      .rows = std::min(c.length, kMostRows), .head = head, .group = in.sizes.group_of(head), .sizes = in.sizes};
  const Seqs seqs = Seqs::dense(1, part.rows);
  const double tolerance = bench.tolerance(1e-5);
  const SsdForward some = part.of(in, seqs);
  ref::ssd_forward(some, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), ssd_forward, in);
  bench.check(part.wide(in.y), some.y, tolerance, "ssd");

  back.dy.fill_zero();
  const Tensor dy = part.wide(back.dy);
  dy.copy_from(bench.random("dy", dy.shape()));
  SSM_RUN(bench.device(), bench.threads(), ssd_backward, back);
  const SsdBackward expected = gradients(some, exact_copy(dy));
  ref::ssd_backward(expected, bench.threads());
  bench.check(part.wide(back.dx), expected.dx, tolerance, "ssd, dx");
  bench.check(part.narrow(back.ddt), expected.ddt, tolerance, "ssd, ddt");
  bench.check(part.grouped(back.dB), expected.dB, tolerance, "ssd, dB");
  bench.check(part.grouped(back.dC), expected.dC, tolerance, "ssd, dC");
  bench.check(part.parameter(back.dA_log), expected.dA_log, tolerance, "ssd, dA_log");
  bench.check(part.parameter(back.dD), expected.dD, tolerance, "ssd, dD");
  bench.check(part.parameter(back.ddt_bias), expected.ddt_bias, tolerance, "ssd, ddt_bias");
}

// Multiply-adds of the recurrence (ssd.h) are the work, whatever the schedule does beside it.
void add(Bench& bench, const Case& c, const std::string& name, const Timing& timing, double multiply_adds,
         double rival_seconds, const char* rival_name) {
  Row row{.group = "op", .name = name, .shape = c.shape(), .timing = timing, .elements = c.elements()};
  if (bench.on_gpu()) {
    row.rate = 2 * multiply_adds * c.elements() * static_cast<double>(c.n) / timing.median / 1e12;
    row.unit = "TFLOP/s";
    row.limit = bench.products() / 1e12;
    row.limit_name = Bench::kProductsName;
  } else {
    row.rate = static_cast<double>(c.tokens()) / timing.median / 1e3;
    row.unit = "k tokens/s";
    row.rival = static_cast<double>(c.tokens()) / rival_seconds / 1e3;
    row.rival_name = rival_name;
  }
  bench.add(std::move(row));
}

// Whole prompts, and what a training step does with them.
void bench_sequences(Bench& bench, const Case& c) {
  const std::string forward_name = "ssd forward", backward_name = "ssd backward";
  if (!bench.wanted(forward_name, c.shape()) && !bench.wanted(backward_name, c.shape())) return;
  const Seqs seqs = Seqs::dense(c.sequences, c.length);
  SsdForward in = operands(bench, c, seqs), saving = in;
  in.state = Tensor::zeros({c.sequences, c.m, c.n, c.p}, DType::f32, bench.device());
  saving.starts = bench.empty_f32({ssd_spans(seqs), c.m, c.n, c.p});
  const SsdBackward back = gradients(saving, bench.empty(in.x.shape()));
  check(bench, c, saving, back);
  back.dy.copy_from(bench.random("dy", back.dy.shape()));

  const Timing forward = bench.time([&] { SSM_RUN(bench.device(), bench.threads(), ssd_forward, in); });
  double definition = 0;
  if (!bench.on_gpu()) definition = time([&] { ref::ssd_forward(in, bench.threads()); }).median;
  add(bench, c, forward_name, forward, 2, definition, "ref");
  const Timing backward = bench.time([&] { SSM_RUN(bench.device(), bench.threads(), ssd_backward, back); });
  add(bench, c, backward_name, backward, 5, forward.median, "its forward");
}

// One token of each sequence, the layers of a model in turn: then their states come from memory, as they do when a
// model decodes.
void bench_single_tokens(Bench& bench, const Case& c) {
  constexpr size_t kLayers = 24;
  const std::string name = text("ssd decode, ", kLayers, " layers");
  if (!bench.wanted(name, c.shape())) return;
  const Seqs seqs = Seqs::dense(c.sequences, 1);
  std::vector<SsdForward> layers(kLayers, operands(bench, c, seqs));
  for (SsdForward& layer : layers)
    layer.state = Tensor::zeros({c.sequences, c.m, c.n, c.p}, DType::f32, bench.device());
  const Timing timing = bench.time([&] {
    for (const SsdForward& layer : layers) SSM_RUN(bench.device(), bench.threads(), ssd_forward, layer);
  });
  const double bytes = 2.0 * static_cast<double>(kLayers * static_cast<size_t>(layers[0].state.bytes()));
  bench.add({.group = "op",
             .name = name,
             .shape = c.shape(),
             .timing = timing,
             .rate = bytes / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.bandwidth() / 1e9,
             .limit_name = bench.bandwidth_name()});
}

}  // namespace

void bench_ssd(Bench& bench) {
  if (bench.on_gpu()) {
    for (const Case& c :
         {Case{8, 2048, 80, 64, 1, 128}, Case{8, 2048, 24, 64, 1, 128}, Case{1, 131072, 32, 64, 1, 128}})
      bench_sequences(bench, c);
    for (const int64_t sequences : {1, 64}) bench_single_tokens(bench, {sequences, 1, 24, 64, 1, 128});
    return;
  }
  for (const Case& c : {Case{1, 512, 24, 64, 1, 128}, Case{1, 2048, 24, 64, 1, 128}, Case{8, 256, 24, 64, 1, 128},
                        Case{1, 512, 24, 64, 8, 64}})
    bench_sequences(bench, c);
  for (const int64_t sequences : {1, 16}) bench_single_tokens(bench, {sequences, 1, 24, 64, 1, 128});
}

}  // namespace ssm::bench
