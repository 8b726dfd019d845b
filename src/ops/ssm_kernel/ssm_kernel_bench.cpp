// ssm_kernel forward and backward, of a diagonal system and of one with a rank-one part, as S4D and S4 have them: 32
// pairs of modes, steps from 1e-3 to 1e-1. Some channels are compared with the recurrence in f64.
#include <algorithm>
#include <cmath>

#include "bench/harness.h"
#include "ops/ssm_kernel/ssm_kernel.h"

namespace ssm::bench {
namespace {

constexpr int64_t kModes = 32;

StateSpace system_of(const Bench& bench, bool low_rank, int64_t e) {
  const auto random = [&](const char* name, const Shape& shape, double low, double high) {
    return Var{bench.random_f32(name, shape, low, high), {}};
  };
  DiscretizeIn in{.inv_dt = random("inv_dt", {e, 1}, std::log(1e-3), std::log(1e-1)),
                  .A_real = random("A_real", {e, kModes}, -1, 0),
                  .A_imag = random("A_imag", {e, kModes}, 0, 100),
                  .B = random("B", {1, e, kModes, 2}, -1, 1),
                  .C = random("C", {1, e, kModes, 2}, -1, 1),
                  .method = low_rank ? Discretization::bilinear : Discretization::zoh};
  if (low_rank) in.P = random("P", {1, e, kModes, 2}, -3, 3);
  return discretize(bench.ctx(), in);
}

void bench_case(Bench& bench, bool low_rank, int64_t length, int64_t e) {
  const std::string shape = text(length, " x ", e, " x ", kModes), kind = low_rank ? "Cauchy " : "Vandermonde ";
  const std::string forward_name = kind + "forward", backward_name = kind + "backward";
  if (!bench.wanted(forward_name, shape) && !bench.wanted(backward_name, shape)) return;
  const StateSpace system = system_of(bench, low_rank, e);
  const SsmKernelForward forward{.z = system.z.value,
                                 .b = system.b.value,
                                 .c = system.c.value,
                                 .f = system.f.value,
                                 .g = system.g.value,
                                 .K = bench.empty_f32({length, e})};
  const auto like = [](const Tensor& one) {
    return one ? Tensor::empty(one.shape(), one.dtype(), one.device()) : Tensor();
  };
  const SsmKernelBackward backward{.z = forward.z,
                                   .b = forward.b,
                                   .c = forward.c,
                                   .f = forward.f,
                                   .g = forward.g,
                                   .dK = bench.random_f32("dK", {length, e}),
                                   .dz = like(forward.z),
                                   .db = like(forward.b),
                                   .dc = like(forward.c),
                                   .df = like(forward.f),
                                   .dg = like(forward.g)};

  // The last channels alone, (parts, n, some) in f64.
  const int64_t some = std::min<int64_t>(2, e);
  const auto channels = [&](const Tensor& of) {
    if (!of) return Tensor();
    const int64_t rows = of.count() / e;
    return exact_copy(of.reshape({rows, e}).columns(e - some, e)).reshape({of.size(0), of.size(1), some});
  };
  const auto taps = [&](const Tensor& of) { return exact_copy(of.columns(e - some, e)); };
  const SsmKernelForward exact{.z = channels(forward.z),
                               .b = channels(forward.b),
                               .c = channels(forward.c),
                               .f = channels(forward.f),
                               .g = channels(forward.g),
                               .K = Tensor::empty({length, some}, DType::f64)};
  SSM_RUN(bench.device(), bench.threads(), ssm_kernel_forward, forward);
  ref::ssm_kernel_forward(exact, bench.threads());
  bench.check(taps(forward.K), exact.K, 1e-4, kind);
  const SsmKernelBackward exact_back{.z = exact.z,
                                     .b = exact.b,
                                     .c = exact.c,
                                     .f = exact.f,
                                     .g = exact.g,
                                     .dK = taps(backward.dK),
                                     .dz = like(exact.z),
                                     .db = like(exact.b),
                                     .dc = like(exact.c),
                                     .df = like(exact.f),
                                     .dg = like(exact.g)};
  SSM_RUN(bench.device(), bench.threads(), ssm_kernel_backward, backward);
  ref::ssm_kernel_backward(exact_back, bench.threads());
  bench.check(channels(backward.dz), exact_back.dz, 1e-4, kind + "dz");
  bench.check(channels(backward.dc), exact_back.dc, 1e-4, kind + "dc");

  const auto add = [&](const std::string& name, const Timing& timing) {
    const auto elements = static_cast<double>(length * e);
    bench.add({.group = "op",
               .name = name,
               .shape = shape,
               .timing = timing,
               .rate = elements * kModes / timing.median / 1e9,
               .unit = "G terms/s"});
  };
  add(forward_name, bench.time([&] { SSM_RUN(bench.device(), bench.threads(), ssm_kernel_forward, forward); }));
  add(backward_name, bench.time([&] { SSM_RUN(bench.device(), bench.threads(), ssm_kernel_backward, backward); }));
}

}  // namespace

void bench_ssm_kernel(Bench& bench) {
  for (const bool low_rank : {false, true}) {
    if (bench.on_gpu())
      for (const int64_t length : {1024, 4096, 16384, 65536}) bench_case(bench, low_rank, length, 768);
    else
      bench_case(bench, low_rank, 2048, 64);
  }
}

}  // namespace ssm::bench
