// fft_conv forward and backward. Channels do not meet, so some are compared with the cpu's, by other transforms; the
// first rows of these with the sum as it is defined.
#include <algorithm>

#include "bench/harness.h"
#include "ops/fft_conv/fft_conv.h"

namespace ssm::bench {
namespace {

struct Operands {
  Seqs seqs;
  FftConvForward forward;
  FftConvBackward backward;

  Operands(const Bench& bench, int64_t sequences, int64_t length, int64_t e) : seqs(Seqs::dense(sequences, length)) {
    const Shape shape = {sequences * length, e};
    forward = {.u = bench.random("u", shape),
               .K = bench.random_f32("K", {length, e}),
               .D = bench.random_f32("D", {e}),
               .seqs = &seqs,
               .y = bench.empty(shape)};
    backward = {.u = forward.u,
                .K = forward.K,
                .D = forward.D,
                .seqs = &seqs,
                .dy = bench.random("dy", shape),
                .du = bench.empty(shape),
                .dK = bench.empty_f32({length, e}),
                .dD = bench.empty_f32({e})};
  }
};

void check(Bench& bench, const Operands& in) {
  const int64_t e = in.forward.u.size(1), count = std::min<int64_t>(e, 4), begin = (e - count) / 2, end = begin + count;
  const auto host = [](const Tensor& tensor) { return tensor.on(Device::cpu()).to(DType::f32); };
  const auto columns = [&](const Tensor& of) { return host(of.columns(begin, end).clone()); };
  const auto numbers = [&](const Tensor& of) { return host(of.rows(begin, end)); };
  const auto like = [](const Tensor& one) { return Tensor::empty(one.shape(), DType::f32); };
  FftConvForward some{
      .u = columns(in.forward.u), .K = columns(in.forward.K), .D = numbers(in.forward.D), .seqs = &in.seqs, .y = {}};
  some.y = like(some.u);
  cpu::fft_conv_forward(some, bench.threads());
  const int64_t rows = std::min<int64_t>(in.seqs.longest, 512);
  const Seqs first = Seqs::dense(1, rows);
  const FftConvForward exact{.u = exact_copy(some.u.rows(0, rows)),
                             .K = exact_copy(some.K),
                             .D = exact_copy(some.D),
                             .seqs = &first,
                             .y = Tensor::empty({rows, count}, DType::f64)};
  ref::fft_conv_forward(exact, bench.threads());
  bench.check(some.y.rows(0, rows), exact.y, 1e-4, "fft_conv on the cpu");
  SSM_RUN(bench.device(), bench.threads(), fft_conv_forward, in.forward);
  bench.check(columns(in.forward.y), some.y, bench.tolerance(1e-4), "fft_conv");

  FftConvBackward back{.u = some.u, .K = some.K, .D = some.D, .seqs = &in.seqs, .dy = columns(in.backward.dy)};
  back.du = like(some.u), back.dK = like(some.K), back.dD = like(some.D);
  cpu::fft_conv_backward(back, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), fft_conv_backward, in.backward);
  bench.check(columns(in.backward.du), back.du, bench.tolerance(1e-4), "fft_conv, du");
  bench.check(columns(in.backward.dK), back.dK, 1e-4, "fft_conv, dK");
  bench.check(numbers(in.backward.dD), back.dD, 1e-4, "fft_conv, dD");
}

void bench_case(Bench& bench, int64_t sequences, int64_t length, int64_t e) {
  const std::string shape = text(sequences, " x ", length, " x ", e);
  const char *const forward = "fft_conv forward", *const backward = "fft_conv backward";
  if (!bench.wanted(forward, shape) && !bench.wanted(backward, shape)) return;
  const Operands in(bench, sequences, length, e);
  check(bench, in);
  const auto add = [&](const char* name, const Timing& timing, int64_t tensors) {
    const int64_t bytes = tensors * bytes_of(bench.dtype()) * sequences * length * e;
    bench.add({.group = "op",
               .name = name,
               .shape = shape,
               .timing = timing,
               .rate = static_cast<double>(bytes) / timing.median / 1e9,
               .unit = "GB/s",
               .limit = bench.bandwidth() / 1e9,
               .limit_name = bench.bandwidth_name()});
  };
  add(forward, bench.time([&] { SSM_RUN(bench.device(), bench.threads(), fft_conv_forward, in.forward); }), 2);
  add(backward, bench.time([&] { SSM_RUN(bench.device(), bench.threads(), fft_conv_backward, in.backward); }), 3);
}

}  // namespace

void bench_fft_conv(Bench& bench) {
  if (!bench.on_gpu()) return bench_case(bench, 4, 2048, 64);
  for (const int64_t length : {1024, 4096, 16384, 65536}) bench_case(bench, 65536 / length, length, 768);
}

}  // namespace ssm::bench
