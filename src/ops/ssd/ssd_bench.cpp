// ssd: time a token of the 130M shape, forward and backward, against the plain definition; and of single tokens, where
// moving the state is all there is, against the bandwidth of memory.
#include "bench/harness.h"
#include "ops/ssd/ssd.h"

namespace ssm::bench {
namespace {

struct Case {
  int64_t sequences, length, m, p, g, n;
  std::string shape() const { return text(sequences, " x ", length, ", ", m, " x ", p, " g ", g, " n ", n); }
};

SsdIn inputs_of(const Case& c, const Tape& tape) {
  const int64_t t = c.sequences * c.length;
  const auto input = [&](const char* name, const Shape& shape, double low, double high) {
    return tape.variable(random(name, shape, low, high));
  };
  return {.x = input("x", {t, c.m * c.p}, -1, 1),
          .dt = input("dt", {t, c.m}, -5, -2),
          .A_log = input("A_log", {c.m}, 0, 2.7),
          .B = input("B", {t, c.g * c.n}, -1, 1),
          .C = input("C", {t, c.g * c.n}, -1, 1),
          .D = input("D", {c.m}, -1, 1),
          .dt_bias = input("dt_bias", {c.m}, -1, 1),
          .groups = c.g};
}

// Whole prompts, and what a training step does with them.
void bench_sequences(Bench& bench, const Case& c) {
  const Tape tape;
  const SsdIn in = inputs_of(c, tape);
  const auto t = static_cast<double>(c.sequences * c.length);
  const Seqs seqs = Seqs::dense(c.sequences, c.length);
  const Tensor dy = random("dy", in.x.value.shape());
  Var state{Tensor::zeros({c.sequences, c.m, c.n, c.p}, DType::f32), {}};
  bench.check(ssd(bench.ctx(), in, seqs, nullptr).value, ssd(bench.ref(), in, seqs, nullptr).value, 1e-5, "ssd");
  const Timing forward = time([&] { ssd(bench.ctx(), in, seqs, &state); });
  const Timing definition = time([&] { ssd(bench.ref(), in, seqs, &state); });
  bench.add({.group = "op",
             .name = "ssd forward",
             .shape = c.shape(),
             .timing = forward,
             .rate = t / forward.median / 1e3,
             .unit = "k tokens/s",
             .rival = t / definition.median / 1e3,
             .rival_name = "ref"});
  // The forward under a tape is part of a backward's cost; it is taken off.
  const Timing recorded = time([&] {
    Tape unused;
    ssd(bench.ctx(&unused), in, seqs, nullptr);
  });
  const Timing both = time([&] {
    for (const Var* var : {&in.x, &in.dt, &in.A_log, &in.B, &in.C, &in.D, &in.dt_bias}) var->grad->written = false;
    Tape fresh;
    const Var y = ssd(bench.ctx(&fresh), in, seqs, nullptr);
    fresh.backward({{y, dy}});
  });
  Timing backward = both;
  backward.median -= recorded.median, backward.fastest -= recorded.fastest, backward.slowest -= recorded.slowest;
  bench.add({.group = "op",
             .name = "ssd backward",
             .shape = c.shape(),
             .timing = backward,
             .rate = t / backward.median / 1e3,
             .unit = "k tokens/s",
             .rival = t / forward.median / 1e3,
             .rival_name = "its forward"});
}

// One token of each sequence, the layers of a model in turn: then their states come from memory, as they do when a
// model decodes.
void bench_single_tokens(Bench& bench, const Case& c) {
  constexpr size_t kLayers = 24;
  const Tape tape;
  const SsdIn in = inputs_of(c, tape);
  const Seqs seqs = Seqs::dense(c.sequences, 1);
  std::vector<Var> states;
  for (size_t i = 0; i < kLayers; ++i) states.push_back({Tensor::zeros({c.sequences, c.m, c.n, c.p}, DType::f32), {}});
  const Timing timing = time([&] {
    for (Var& state : states) ssd(bench.ctx(), in, seqs, &state);
  });
  const double bytes = 2.0 * static_cast<double>(kLayers * static_cast<size_t>(states[0].value.bytes()));
  bench.add({.group = "op",
             .name = text("ssd decode, ", kLayers, " layers"),
             .shape = c.shape(),
             .timing = timing,
             .rate = bytes / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.read_bandwidth() / 1e9,
             .limit_name = "read memory"});
}

}  // namespace

void bench_ssd(Bench& bench) {
  for (const Case& c : {Case{1, 512, 24, 64, 1, 128}, Case{1, 2048, 24, 64, 1, 128}, Case{8, 256, 24, 64, 1, 128},
                        Case{1, 512, 24, 64, 8, 64}})
    bench_sequences(bench, c);
  for (const int64_t sequences : {1, 16}) bench_single_tokens(bench, {sequences, 1, 24, 64, 1, 128});
}

}  // namespace ssm::bench
