// selective_scan: time a (token, channel), forward and backward: on the cpu against the plain definition, on a GPU
// against the traffic of reading each input once and writing each output once. Some channels are compared with f64 at
// full length; there the gradients of B and C, which sum over all channels, come from those alone.
#include <algorithm>

#include "bench/harness.h"
#include "ops/selective_scan/selective_scan.h"

namespace ssm::bench {
namespace {

struct Case {
  int64_t sequences, length, e, n = 16;
  std::string shape() const { return text(sequences, " x ", length, " x ", e, " n ", n); }
  double elements() const { return static_cast<double>(sequences * length * e); }
};

ScanForward operands(const Bench& bench, const Case& c, const Seqs& seqs) {
  const int64_t t = c.sequences * c.length;
  return {.x = bench.random("x", {t, c.e}),
          .dt = bench.random("dt", {t, c.e}, -5, -2),
          .A_log = bench.random_f32("A_log", {c.e, c.n}, 0, 2.7),
          .B = bench.random("B", {t, c.n}),
          .C = bench.random("C", {t, c.n}),
          .D = bench.random_f32("D", {c.e}),
          .dt_bias = bench.random_f32("dt_bias", {c.e}),
          .z = bench.random("z", {t, c.e}, -2, 2),
          .rates = {},
          .seqs = &seqs,
          .h = {},
          .out = bench.empty({t, c.e}),
          .starts = {}};
}

// Backward with all gradients; what the forward saved must be there.
ScanBackward gradients(const ScanForward& in, const Tensor& dout) {
  const auto like = [](const Tensor& one) { return Tensor::empty(one.shape(), one.dtype(), one.device()); };
  return {.x = in.x,
          .dt = in.dt,
          .A_log = in.A_log,
          .B = in.B,
          .C = in.C,
          .D = in.D,
          .dt_bias = in.dt_bias,
          .z = in.z,
          .starts = in.starts,
          .seqs = in.seqs,
          .dout = dout,
          .dh = {},
          .dx = like(in.x),
          .ddt = like(in.dt),
          .dA_log = like(in.A_log),
          .dB = like(in.B),
          .dC = like(in.C),
          .dD = like(in.D),
          .ddt_bias = like(in.dt_bias),
          .dz = like(in.z)};
}

// Some channels on the host in f64.
struct Channels {
  int64_t begin, end;
  Tensor of(const Tensor& activation) const { return exact_copy(activation.columns(begin, end)); }
  Tensor of_parameter(const Tensor& parameter) const { return exact_copy(parameter.rows(begin, end)); }
  ScanForward of(const ScanForward& in, Threads& threads) const {
    ScanForward some{.x = of(in.x),
                     .dt = of(in.dt),
                     .A_log = of_parameter(in.A_log),
                     .B = exact_copy(in.B),
                     .C = exact_copy(in.C),
                     .D = of_parameter(in.D),
                     .dt_bias = of_parameter(in.dt_bias),
                     .z = of(in.z),
                     .rates = {},
                     .seqs = in.seqs};
    some.out = Tensor::empty(some.x.shape(), DType::f64);
    some.starts = scan_starts({Device::ref(), &threads}, *in.seqs, in.B.size(1), end - begin, DType::f64);
    return some;
  }
};

// In the middle, so that they fall into two blocks of any kernel.
Channels some_channels(const Bench& bench, const Case& c) {
  const int64_t count = std::min<int64_t>(c.e, bench.on_gpu() ? 4 : 64), begin = (c.e - count) / 2;
  return {begin, begin + count};
}

void check(const Bench& bench, const Case& c, const ScanForward& in, const ScanBackward& back) {
  const Channels channels = some_channels(bench, c);
  const double tolerance = bench.tolerance(1e-5);
  const ScanForward some = channels.of(in, bench.threads());
  ref::selective_scan_forward(some, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), selective_scan_forward, in);
  bench.check(in.out.columns(channels.begin, channels.end), some.out, tolerance, "selective_scan");

  back.dout.fill_zero();
  const Tensor part = back.dout.columns(channels.begin, channels.end);
  part.copy_from(bench.random("dout", part.shape()));
  SSM_RUN(bench.device(), bench.threads(), selective_scan_backward, back);
  const ScanBackward expected = gradients(some, exact_copy(part));
  ref::selective_scan_backward(expected, bench.threads());
  const auto columns = [&](const Tensor& of) { return of.columns(channels.begin, channels.end); };
  const auto rows = [&](const Tensor& of) { return of.rows(channels.begin, channels.end); };
  bench.check(columns(back.dx), expected.dx, tolerance, "selective_scan, dx");
  bench.check(columns(back.ddt), expected.ddt, tolerance, "selective_scan, ddt");
  bench.check(columns(back.dz), expected.dz, tolerance, "selective_scan, dz");
  bench.check(rows(back.dA_log), expected.dA_log, tolerance, "selective_scan, dA_log");
  bench.check(rows(back.dD), expected.dD, tolerance, "selective_scan, dD");
  bench.check(rows(back.ddt_bias), expected.ddt_bias, tolerance, "selective_scan, ddt_bias");
  bench.check(back.dB, expected.dB, tolerance, "selective_scan, dB");
  bench.check(back.dC, expected.dC, tolerance, "selective_scan, dC");
}

// The traffic of a GPU's row, or the definition beside a cpu's.
void add(Bench& bench, const Case& c, const std::string& name, const Timing& timing, double tensors, double rival,
         const char* rival_name) {
  Row row{.group = "op", .name = name, .shape = c.shape(), .timing = timing, .elements = c.elements()};
  if (bench.on_gpu()) {
    row.rate = tensors * static_cast<double>(bytes_of(bench.dtype())) * c.elements() / timing.median / 1e9;
    row.unit = "GB/s";
    row.limit = bench.bandwidth() / 1e9;
    row.limit_name = bench.bandwidth_name();
  } else {
    row.rate = c.elements() / timing.median / 1e6;
    row.unit = "M elem/s";
    row.rival = c.elements() / rival / 1e6;
    row.rival_name = rival_name;
  }
  bench.add(std::move(row));
}

void bench_sequences(Bench& bench, const Case& c) {
  const std::string forward_name = "selective_scan forward", backward_name = "selective_scan backward";
  if (!bench.wanted(forward_name, c.shape()) && !bench.wanted(backward_name, c.shape())) return;
  const Seqs seqs = Seqs::dense(c.sequences, c.length);
  ScanForward in = operands(bench, c, seqs);
  ScanForward saving = in;
  saving.starts = scan_starts({bench.device(), &bench.threads()}, seqs, c.n, c.e, bench.dtype());
  const ScanBackward back = gradients(saving, bench.empty(in.x.shape()));
  check(bench, c, saving, back);
  back.dout.copy_from(bench.random("dout", back.dout.shape()));

  const Timing forward = bench.time([&] { SSM_RUN(bench.device(), bench.threads(), selective_scan_forward, in); });
  double definition = 0;
  if (!bench.on_gpu()) definition = time([&] { ref::selective_scan_forward(in, bench.threads()); }).median;
  add(bench, c, forward_name, forward, 4, definition, "ref");
  const Timing backward = bench.time([&] { SSM_RUN(bench.device(), bench.threads(), selective_scan_backward, back); });
  add(bench, c, backward_name, backward, 7, forward.median, "its forward");
}

// One token of each sequence, which is all about reading and writing the states. Each call has states of its own; the
// decay rates are kept, as whoever decodes keeps them.
void bench_one_token(Bench& bench, const Case& c) {
  const std::string name = "selective_scan one token";
  if (!bench.wanted(name, c.shape())) return;
  const Seqs seqs = Seqs::dense(c.sequences, c.length);
  ScanForward in = operands(bench, c, seqs);
  in.rates = scan_rates({bench.device(), &bench.threads()}, in.A_log);
  const Shape state = {c.sequences, c.n, c.e};
  const double bytes =
      2.0 * static_cast<double>(state.count() * bytes_of(DType::f32)) + 4.0 * static_cast<double>(in.x.bytes());
  std::vector<ScanForward> calls(static_cast<size_t>(bench.calls_past_cache(bytes)), in);
  for (size_t i = 0; i < calls.size(); ++i) calls[i].h = bench.random_f32(text("h", i), state);

  const Channels channels = some_channels(bench, c);
  ScanForward some = channels.of(in, bench.threads());
  some.h = exact_copy(calls[0].h.reshape({c.sequences * c.n, c.e}).columns(channels.begin, channels.end))
               .reshape({c.sequences, c.n, channels.end - channels.begin});
  ref::selective_scan_forward(some, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), selective_scan_forward, calls[0]);
  bench.check(in.out.columns(channels.begin, channels.end), some.out, bench.tolerance(1e-5), name);

  const Timing timing = bench.time(
      [&] {
        for (const ScanForward& one : calls) SSM_RUN(bench.device(), bench.threads(), selective_scan_forward, one);
      },
      static_cast<int64_t>(calls.size()));
  bench.add({.group = "op",
             .name = name,
             .shape = c.shape(),
             .timing = timing,
             .elements = c.elements(),
             .rate = bytes / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.bandwidth() / 1e9,
             .limit_name = bench.bandwidth_name()});
}

}  // namespace

void bench_selective_scan(Bench& bench) {
  if (!bench.on_gpu()) {
    for (const Case& c : {Case{1, 512, 1536}, Case{8, 256, 768}, Case{1, 1, 1536}, Case{1, 512, 1536, 64}})
      bench_sequences(bench, c);
    return;
  }
  for (const Case& c :
       {Case{8, 2048, 1536}, Case{8, 2048, 2048}, Case{8, 2048, 5120}, Case{1, 2048, 1536}, Case{1, 16384, 2048},
        Case{1, 131072, 2048}, Case{1, 524288, 2048}, Case{64, 2048, 1536}, Case{16, 512, 2048}})
    bench_sequences(bench, c);
  bench_one_token(bench, {128, 1, 5120});
}

}  // namespace ssm::bench
