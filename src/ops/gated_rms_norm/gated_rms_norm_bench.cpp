// gated_rms_norm against the bandwidth of memory: three tensors read or written forward, five backward. Some rows are
// compared with f64; those alone have gradients then.
#include <algorithm>

#include "bench/harness.h"
#include "ops/gated_rms_norm/gated_rms_norm.h"

namespace ssm::bench {
namespace {

constexpr int64_t kMostChecked = 64;  // rows

GatedNormForward operands(const Bench& bench, int64_t t, int64_t e) {
  return {.y = bench.random("y", {t, e}),
          .z = bench.random("z", {t, e}),
          .weight = bench.random_f32("weight", {e}),
          .eps = 1e-5,
          .order = GateOrder::gate_first,
          .out = bench.empty({t, e}),
          .scale = bench.empty_f32({t, 1})};
}

GatedNormBackward gradients(const GatedNormForward& in, const Tensor& dout) {
  const auto like = [](const Tensor& one) { return Tensor::empty(one.shape(), one.dtype(), one.device()); };
  return {.y = in.y,
          .z = in.z,
          .weight = in.weight,
          .scale = in.scale,
          .order = in.order,
          .dout = dout,
          .dy = like(in.y),
          .dz = like(in.z),
          .dweight = like(in.weight)};
}

void check(const Bench& bench, const GatedNormForward& in, const GatedNormBackward& back) {
  const int64_t t = in.y.size(0), checked = std::min(t, kMostChecked), begin = t - checked;
  const auto rows = [&](const Tensor& of) { return of.rows(begin, t); };
  const GatedNormForward some{.y = exact_copy(rows(in.y)),
                              .z = exact_copy(rows(in.z)),
                              .weight = exact_copy(in.weight),
                              .eps = in.eps,
                              .order = in.order,
                              .out = Tensor::empty({checked, in.y.size(1)}, DType::f64),
                              .scale = Tensor::empty({checked, 1}, DType::f64)};
  ref::gated_rms_norm_forward(some, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), gated_rms_norm_forward, in);
  bench.check(rows(in.out), some.out, bench.tolerance(1e-5), "gated_rms_norm");

  back.dout.rows(0, begin).fill_zero();
  const GatedNormBackward expected = gradients(some, exact_copy(rows(back.dout)));
  ref::gated_rms_norm_backward(expected, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), gated_rms_norm_backward, back);
  bench.check(rows(back.dy), expected.dy, bench.tolerance(1e-5), "gated_rms_norm, dy");
  bench.check(rows(back.dz), expected.dz, bench.tolerance(1e-5), "gated_rms_norm, dz");
  bench.check(back.dweight, expected.dweight, bench.tolerance(1e-4), "gated_rms_norm, dweight");
}

void bench_case(Bench& bench, int64_t t, int64_t e) {
  const char *const forward_name = "gated_rms_norm forward", *const backward_name = "gated_rms_norm backward";
  const std::string shape = text(t, " x ", e);
  if (!bench.wanted(forward_name, shape) && !bench.wanted(backward_name, shape)) return;
  const double one_tensor = static_cast<double>(bytes_of(bench.dtype()) * t * e);
  const int64_t calls = bench.calls_past_cache(3 * one_tensor);
  std::vector<GatedNormForward> forward;
  std::vector<GatedNormBackward> backward;
  for (int64_t i = 0; i < calls; ++i) {
    forward.push_back(operands(bench, t, e));
    backward.push_back(gradients(forward.back(), bench.random("dout", {t, e})));
  }
  check(bench, forward[0], backward[0]);
  const auto add = [&](const char* name, const Timing& timing, int tensors) {
    bench.add({.group = "op",
               .name = name,
               .shape = shape,
               .timing = timing,
               .rate = tensors * one_tensor / timing.median / 1e9,
               .unit = "GB/s",
               .limit = bench.bandwidth() / 1e9,
               .limit_name = bench.bandwidth_name()});
  };
  const Timing forth = bench.time(
      [&] {
        for (const GatedNormForward& one : forward)
          SSM_RUN(bench.device(), bench.threads(), gated_rms_norm_forward, one);
      },
      calls);
  add(forward_name, forth, 3);
  if (!bench.on_gpu()) return;
  backward[0].dout.copy_from(bench.random("dout", {t, e}));
  const Timing back = bench.time(
      [&] {
        for (const GatedNormBackward& one : backward)
          SSM_RUN(bench.device(), bench.threads(), gated_rms_norm_backward, one);
      },
      calls);
  add(backward_name, back, 5);
}

}  // namespace

void bench_gated_rms_norm(Bench& bench) {
  if (bench.on_gpu()) {
    for (const int64_t e : {1536, 4096}) bench_case(bench, 16384, e);
  } else {
    for (const int64_t t : {1, 512, 16384}) bench_case(bench, t, 1536);
  }
}

}  // namespace ssm::bench
