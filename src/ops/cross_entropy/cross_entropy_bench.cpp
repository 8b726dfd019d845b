// The loss with its head, and the gradients it makes in the same pass, against the rate of products and in memory: what
// a training step pays beside its layers. Compared with f64 where only some positions have targets: their losses, the
// gradient of the whole head, and no gradient of x elsewhere.
#include <cmath>

#include "bench/harness.h"
#include "core/memory.h"
#include "core/rng.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace ssm::bench {
namespace {

struct Case {
  int64_t t, d, vocab;
  std::string shape() const { return text(t, " x ", d, " x ", vocab); }
};

constexpr int64_t kChecked = 4;  // positions, the last ones

Tensor some_targets(int64_t t, int64_t vocab) {
  const Tensor ids = Tensor::empty({t}, DType::i64);
  const Rng rng(1, "targets");
  for (int64_t i = 0; i < t; ++i)
    ids.data<int64_t>()[i] = static_cast<int64_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocab)));
  return ids;
}

void check(const Bench& bench, LinearCrossEntropyForward args, const Tensor& all_targets) {
  const int64_t t = args.x.size(0), begin = t - kChecked;
  const Tensor targets = all_targets.clone();
  for (int64_t i = 0; i < begin; ++i) targets.data<int64_t>()[i] = kIgnoredTarget;
  args.targets = {.ids = targets.on(bench.device()), .ignore = kIgnoredTarget, .counted = kChecked};
  SSM_RUN(bench.device(), bench.threads(), linear_cross_entropy_forward, args);
  const Targets last{.ids = targets.rows(begin, t).clone(), .ignore = kIgnoredTarget, .counted = kChecked};
  const LinearCrossEntropyForward some{
      .x = exact_copy(args.x.rows(begin, t)),
      .weight = exact_copy(args.weight),
      .targets = last,
      .losses = Tensor::empty({kChecked}, DType::f64),
      .loss = Tensor::empty({1}, DType::f64),
      .dx = Tensor::empty({kChecked, args.x.size(1)}, DType::f64),
      .dweight = Tensor::empty(args.weight.shape(), DType::f64)};
  ref::linear_cross_entropy_forward(some, bench.threads());
  bench.check(args.losses.rows(begin, t), some.losses, 1e-3, "cross_entropy, losses");
  bench.check(args.loss, some.loss, 1e-3, "cross_entropy");
  bench.check(args.dx.rows(begin, t), some.dx, bench.tolerance(1e-4), "cross_entropy, dx");
  bench.check(args.dweight, some.dweight, bench.tolerance(1e-4), "cross_entropy, dweight");
  const Tensor rest = exact_copy(args.dx.rows(0, begin));
  for (const double value : rest.span<double>())
    require(value == 0, "cross_entropy: a position without a target has a gradient");
}

void bench_case(Bench& bench, const Case& c) {
  const char *const both_name = "head and loss, gradients", *const forward_name = "head and loss";
  if (!bench.wanted(both_name, c.shape()) && !bench.wanted(forward_name, c.shape())) return;
  const Tensor targets = some_targets(c.t, c.vocab);
  const Targets on_device{.ids = targets.on(bench.device()), .ignore = kIgnoredTarget, .counted = c.t};
  // Logits of a model that has learned something: a few nats apart.
  const LinearCrossEntropyForward both{
      .x = bench.random("x", {c.t, c.d}),
      .weight = bench.random("weight", {c.vocab, c.d}, -0.1, 0.1),
      .targets = on_device,
      .losses = bench.empty_f32({c.t}),
      .loss = bench.empty_f32({1}),
      .dx = bench.empty({c.t, c.d}),
      .dweight = bench.empty_f32({c.vocab, c.d})};
  check(bench, both, targets);
  LinearCrossEntropyForward forward = both;
  forward.dx = forward.dweight = {};
  const auto add = [&](const char* name, const LinearCrossEntropyForward& args, double products) {
    const int64_t before = memory_stats(bench.device()).in_use;
    reset_memory_peak(bench.device());
    SSM_RUN(bench.device(), bench.threads(), linear_cross_entropy_forward, args);
    const auto scratch = static_cast<double>(memory_stats(bench.device()).peak - before);
    const Timing timing =
        bench.time([&] { SSM_RUN(bench.device(), bench.threads(), linear_cross_entropy_forward, args); });
    bench.add({.group = "op",
               .name = name,
               .shape = c.shape(),
               .timing = timing,
               .rate = products * 2 * static_cast<double>(c.t * c.d * c.vocab) / timing.median / 1e12,
               .unit = "TFLOP/s",
               .limit = bench.products() / 1e12,
               .limit_name = Bench::kProductsName,
               .note = text("scratch ", std::llround(scratch / (1 << 20)), " MiB")});
  };
  add(both_name, both, 3);
  add(forward_name, forward, 1);
}

}  // namespace

void bench_cross_entropy(Bench& bench) {
  if (!bench.on_gpu()) return;
  for (const Case& c : {Case{16384, 768, 50280}, Case{8192, 2048, 50280}}) bench_case(bench, c);
}

}  // namespace ssm::bench
