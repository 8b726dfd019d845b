// rms_norm with the residual add against the bandwidth of memory: in f32 16 bytes an element forward; with x in 2
// bytes, as on a GPU, 12 and 16 backward. Some rows are compared with f64; those alone have gradients then.
#include "bench/harness.h"
#include "ops/rms_norm/rms_norm.h"

namespace ssm::bench {
namespace {

constexpr double kEps = 1e-5;
constexpr int64_t kChecked = 64;  // rows

// x, residual and weight, and where y, r and s go.
RmsNormForward operands(const Bench& bench, int64_t t, int64_t d) {
  return {.x = bench.random("x", {t, d}),
          .residual = bench.random_f32("residual", {t, d}),
          .weight = bench.random_f32("weight", {d}),
          .eps = kEps,
          .y = bench.empty({t, d}),
          .sum = bench.empty_f32({t, d}),
          .scale = bench.empty_f32({t})};
}

RmsNormBackward gradients(const RmsNormForward& in, const Tensor& dy, const Tensor& dsum) {
  const auto like = [](const Tensor& one) { return Tensor::empty(one.shape(), one.dtype(), one.device()); };
  return {.sum = in.sum,
          .weight = in.weight,
          .scale = in.scale,
          .dy = dy,
          .dsum = dsum,
          .dx = like(in.x),
          .dresidual = like(in.residual),
          .dweight = like(in.weight)};
}

void check(const Bench& bench, const RmsNormForward& in, const RmsNormBackward& back) {
  const int64_t t = in.x.size(0), begin = t - kChecked;
  const auto rows = [&](const Tensor& of) { return of.rows(begin, t); };
  const RmsNormForward some{.x = exact_copy(rows(in.x)),
                            .residual = exact_copy(rows(in.residual)),
                            .weight = exact_copy(in.weight),
                            .eps = in.eps,
                            .y = Tensor::empty({kChecked, in.x.size(1)}, DType::f64),
                            .sum = Tensor::empty({kChecked, in.x.size(1)}, DType::f64),
                            .scale = Tensor::empty({kChecked}, DType::f64)};
  ref::rms_norm_forward(some, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), rms_norm_forward, in);
  bench.check(rows(in.y), some.y, bench.tolerance(1e-5), "rms_norm");
  bench.check(rows(in.sum), some.sum, 1e-6, "rms_norm, the residual");

  for (const Tensor& gradient : {back.dy, back.dsum}) gradient.rows(0, begin).fill_zero();
  const RmsNormBackward expected = gradients(some, exact_copy(rows(back.dy)), exact_copy(rows(back.dsum)));
  ref::rms_norm_backward(expected, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), rms_norm_backward, back);
  bench.check(rows(back.dx), expected.dx, bench.tolerance(1e-5), "rms_norm, dx");
  bench.check(rows(back.dresidual), expected.dresidual, 1e-5, "rms_norm, dresidual");
  bench.check(back.dweight, expected.dweight, 1e-4, "rms_norm, dweight");
}

void add(Bench& bench, const char* name, const std::string& shape, const Timing& timing, int64_t bytes) {
  bench.add({.group = "op",
             .name = name,
             .shape = shape,
             .timing = timing,
             .rate = static_cast<double>(bytes) / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.bandwidth() / 1e9,
             .limit_name = bench.bandwidth_name()});
}

void bench_case(Bench& bench, int64_t t, int64_t d) {
  const char *const forward_name = "rms_norm forward", *const backward_name = "rms_norm backward";
  const std::string shape = text(t, " x ", d);
  if (!bench.wanted(forward_name, shape) && !bench.wanted(backward_name, shape)) return;
  const int64_t narrow = bytes_of(bench.dtype()), bytes = (2 * narrow + 8) * t * d;
  const int64_t calls = bench.calls_past_cache(static_cast<double>(bytes));
  std::vector<RmsNormForward> forward;
  std::vector<RmsNormBackward> backward;
  for (int64_t i = 0; i < calls; ++i) {
    forward.push_back(operands(bench, t, d));
    backward.push_back(gradients(forward.back(), bench.random("dy", {t, d}), bench.random_f32("dsum", {t, d})));
  }
  check(bench, forward[0], backward[0]);
  const Timing forth = bench.time(
      [&] {
        for (const RmsNormForward& one : forward) SSM_RUN(bench.device(), bench.threads(), rms_norm_forward, one);
      },
      calls);
  add(bench, forward_name, shape, forth, bytes);
  if (!bench.on_gpu()) return;
  backward[0].dy.copy_from(bench.random("dy", {t, d}));
  backward[0].dsum.copy_from(bench.random_f32("dsum", {t, d}));
  const Timing back = bench.time(
      [&] {
        for (const RmsNormBackward& one : backward) SSM_RUN(bench.device(), bench.threads(), rms_norm_backward, one);
      },
      calls);
  // Read r, dy, dsum; written dx and dresidual.
  add(bench, backward_name, shape, back, (2 * narrow + 12) * t * d);
}

}  // namespace

void bench_rms_norm(Bench& bench) {
  if (bench.on_gpu()) {
    for (const int64_t d : {768, 2048}) bench_case(bench, 16384, d);
  } else {
    for (const int64_t t : {512, 16384}) bench_case(bench, t, 768);
  }
}

}  // namespace ssm::bench
