// S4 and S4D as a convolution and as a recurrence, by the length of the sequences: README.md has the figures, and why a
// call that carries a state steps. The two are compared before anything is timed.
#include "bench/harness.h"
#include "mixers/s4/s4.h"
#include "mixers/s4d/s4d.h"
#include "ops/diag_scan/diag_scan.h"
#include "ops/fft_conv/fft_conv.h"
#include "ops/ssm_kernel/ssm_kernel.h"

namespace ssm::bench {
namespace {

// One layer of e channels and 64 states, as it starts, with gradients.
struct Layer {
  ParamStore store;
  DiscretizeIn parameters;
  Var D;

  Layer(const Bench& bench, bool low_rank, int64_t e)
      : store({.seed = 1, .trainable = true, .device = bench.device()}) {
    const Params root(store);
    if (low_rank)
      S4Config().build(root, e, e);
    else
      S4dConfig().build(root, e, e);
    const auto of = [this](const char* name) {
      const Param* const found = store.find(name);
      return found ? found->var : Var{};
    };
    parameters = {.inv_dt = of("kernel.inv_dt"),
                  .A_real = of("kernel.A_real"),
                  .A_imag = of("kernel.A_imag"),
                  .B = of("kernel.B"),
                  .C = of("kernel.C"),
                  .P = of("kernel.P"),
                  .method = low_rank ? Discretization::bilinear : Discretization::zoh};
    D = of("D");
  }

  Var convolved(const Ctx& ctx, const Var& u, const Seqs& seqs) const {
    return fft_conv(ctx, u, ssm_kernel(ctx, discretize(ctx, parameters), seqs.longest), D, seqs);
  }
  Var stepped(const Ctx& ctx, const Var& u, const Seqs& seqs, Var* state) const {
    return diag_scan(ctx, discretize(ctx, parameters), u, D, seqs, state);
  }
};

void bench_case(Bench& bench, bool low_rank, int64_t sequences, int64_t length, int64_t e) {
  const std::string layer = low_rank ? "S4" : "S4D", shape = text(sequences, " x ", length, " x ", e);
  const std::string training = layer + " convolved, training", carrying = layer + " convolved, with a state";
  if (!bench.wanted(training, shape) && !bench.wanted(carrying, shape)) return;
  Layer made(bench, low_rank, e);
  const int64_t t = sequences * length;
  const Seqs seqs = Seqs::dense(sequences, length);
  const Tensor u = bench.random_f32("u", {t, e}), dy = bench.random_f32("dy", {t, e});
  bench.check(made.convolved(bench.ctx(), {u, {}}, seqs).value, made.stepped(bench.ctx(), {u, {}}, seqs, nullptr).value,
              1e-4, layer);

  const auto train = [&](const auto& forward) {
    Tape tape;
    made.store.forget_gradients();
    const Ctx ctx = bench.ctx(&tape);
    tape.backward({{forward(ctx, tape.variable(u)), dy}});
  };
  const auto in_turn = [&](const auto& convolved, const auto& stepped) {
    return bench.on_gpu() ? std::pair{bench.time(convolved), bench.time(stepped)} : time_in_turn(convolved, stepped);
  };
  const auto add = [&](const std::string& name, const std::pair<Timing, Timing>& timing) {
    const auto elements = static_cast<double>(t * e);
    bench.add({.group = "layer",
               .name = name,
               .shape = shape,
               .timing = timing.first,
               .elements = elements,
               .rate = elements / timing.first.median / 1e6,
               .unit = "M/s",
               .rival = elements / timing.second.median / 1e6,
               .rival_name = "recurrence"});
  };
  if (bench.wanted(training, shape))
    add(training,
        in_turn([&] { train([&](const Ctx& ctx, const Var& x) { return made.convolved(ctx, x, seqs); }); },
                [&] { train([&](const Ctx& ctx, const Var& x) { return made.stepped(ctx, x, seqs, nullptr); }); }));
  if (!bench.wanted(carrying, shape)) return;
  Var state{Tensor::zeros({sequences, 2, 32, e}, DType::f32, bench.device()), {}};
  add(carrying, in_turn(
                    [&] {
                      made.convolved(bench.ctx(), {u, {}}, seqs);
                      diag_scan_state(bench.ctx(), discretize(bench.ctx(), made.parameters), {u, {}}, seqs, &state);
                    },
                    [&] {
                      made.stepped(bench.ctx(), {u, {}}, seqs, &state);
                    }));
}

}  // namespace

void bench_lti(Bench& bench) {
  for (const bool low_rank : {false, true})
    for (const int64_t sequences : {1, 8, 32})
      for (const int64_t length : {32, 64, 128, 256, 512, 2048})
        if (sequences * length <= 1 << 14) bench_case(bench, low_rank, sequences, length, bench.on_gpu() ? 256 : 64);
}

}  // namespace ssm::bench
