// conv1d with SiLU against the bandwidth of memory. On the cpu the forward, 8 bytes an element; on a GPU both ways, two
// and three tensors read or written. Channels do not meet, so some are compared with f64 at full length.
#include <algorithm>

#include "bench/harness.h"
#include "ops/conv1d/conv1d.h"

namespace ssm::bench {
namespace {

struct Case {
  int64_t sequences, length, e, w = 4;
  std::string shape() const {
    return sequences == 1 ? text(length, " x ", e) : text(sequences, " x ", length, " x ", e);
  }
};

Conv1dForward operands(const Bench& bench, const Case& c, const Seqs& seqs) {
  const Shape shape = {c.sequences * c.length, c.e};
  return {.x = bench.random("x", shape),
          .weight = bench.random_f32("weight", {c.e, c.w}),
          .bias = bench.random_f32("bias", {c.e}),
          .state = {},
          .seqs = seqs,
          .activation = Activation::silu,
          .y = bench.empty(shape),
          .new_state = {}};
}

Conv1dBackward gradients(const Conv1dForward& in, const Tensor& dy) {
  const auto like = [](const Tensor& one) { return Tensor::empty(one.shape(), one.dtype(), one.device()); };
  return {.x = in.x,
          .weight = in.weight,
          .bias = in.bias,
          .state = {},
          .seqs = in.seqs,
          .activation = in.activation,
          .dy = dy,
          .dnew_state = {},
          .dx = like(in.x),
          .dweight = like(in.weight),
          .dbias = like(in.bias),
          .dstate = {}};
}

void check(const Bench& bench, const Conv1dForward& in, const Conv1dBackward& back) {
  const int64_t e = in.x.size(1), count = std::min<int64_t>(e, 16), begin = (e - count) / 2, end = begin + count;
  const auto columns = [&](const Tensor& of) { return of.columns(begin, end); };
  const auto rows = [&](const Tensor& of) { return of.rows(begin, end); };
  Conv1dForward some{.x = exact_copy(columns(in.x)),
                     .weight = exact_copy(rows(in.weight)),
                     .bias = exact_copy(rows(in.bias)),
                     .state = {},
                     .seqs = in.seqs,
                     .activation = in.activation};
  some.y = Tensor::empty(some.x.shape(), DType::f64);
  ref::conv1d_forward(some, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), conv1d_forward, in);
  bench.check(columns(in.y), some.y, bench.tolerance(1e-5), "conv1d");

  const Conv1dBackward expected = gradients(some, exact_copy(columns(back.dy)));
  ref::conv1d_backward(expected, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), conv1d_backward, back);
  bench.check(columns(back.dx), expected.dx, bench.tolerance(1e-5), "conv1d, dx");
  bench.check(rows(back.dweight), expected.dweight, bench.tolerance(1e-4), "conv1d, dweight");
  bench.check(rows(back.dbias), expected.dbias, bench.tolerance(1e-4), "conv1d, dbias");
}

void add(Bench& bench, const Case& c, const char* name, const Timing& timing, int64_t tensors) {
  const int64_t bytes = tensors * bytes_of(bench.dtype()) * c.sequences * c.length * c.e;
  bench.add({.group = "op",
             .name = name,
             .shape = c.shape(),
             .timing = timing,
             .rate = static_cast<double>(bytes) / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.bandwidth() / 1e9,
             .limit_name = bench.bandwidth_name()});
}

void bench_case(Bench& bench, const Case& c) {
  const char *const forward_name = "conv1d silu forward", *const backward_name = "conv1d silu backward";
  if (!bench.wanted(forward_name, c.shape()) && !bench.wanted(backward_name, c.shape())) return;
  const Seqs seqs = Seqs::dense(c.sequences, c.length);
  std::vector<Conv1dForward> forward;
  std::vector<Conv1dBackward> backward;
  const double bytes = 2.0 * static_cast<double>(bytes_of(bench.dtype()) * c.sequences * c.length * c.e);
  const int64_t calls = bench.calls_past_cache(bytes);
  for (int64_t i = 0; i < calls; ++i) {
    forward.push_back(operands(bench, c, seqs));
    backward.push_back(gradients(forward.back(), bench.random("dy", forward.back().x.shape())));
  }
  check(bench, forward[0], backward[0]);
  const Timing forth = bench.time(
      [&] {
        for (const Conv1dForward& one : forward) SSM_RUN(bench.device(), bench.threads(), conv1d_forward, one);
      },
      calls);
  add(bench, c, forward_name, forth, 2);
  if (!bench.on_gpu()) return;
  const Timing back = bench.time(
      [&] {
        for (const Conv1dBackward& one : backward) SSM_RUN(bench.device(), bench.threads(), conv1d_backward, one);
      },
      calls);
  add(bench, c, backward_name, back, 3);
}

}  // namespace

void bench_conv1d(Bench& bench) {
  if (bench.on_gpu()) return bench_case(bench, {8, 2048, 1536});
  for (const int64_t t : {512, 8192}) bench_case(bench, {1, t, 1536});
}

}  // namespace ssm::bench
