// The front of selective_scan: checks, allocation, choice of the kernel, record of the backward.
#include "ops/selective_scan/selective_scan.h"

#include "ops/linear/linear.h"

namespace ssm {
namespace {

void check(const Var& var, const Shape& expected, const char* name, bool optional = false) {
  if (!var && optional) return;
  require(var.value.shape() == expected, "selective_scan: ", name, " is ", var.value.shape(), ", expected ", expected);
}

void check_inputs(const ScanIn& in, const Seqs& seqs, const Var* h) {
  require(in.x.value.rank() == 2 && in.B.value.rank() == 2, "selective_scan: x is ", in.x.value.shape(), " and B ",
          in.B.value.shape(), ", expected (t, e) and (t, n)");
  const int64_t t = in.x.value.size(0), e = in.x.value.size(1), n = in.B.value.size(1);
  require(seqs.tokens() == t, "selective_scan: the sequences have ", seqs.tokens(), " tokens, x has ", t);
  if (in.dt_weight) {
    require(in.dt.value.rank() == 2 && in.dt.value.size(0) == t, "selective_scan: dt is ", in.dt.value.shape(),
            ", expected (", t, ", r)");
    check(in.dt_weight, {e, in.dt.value.size(1)}, "dt_weight");
  } else {
    check(in.dt, {t, e}, "dt");
  }
  check(in.A_log, {e, n}, "A_log");
  check(in.B, {t, n}, "B");
  check(in.C, {t, n}, "C");
  check(in.D, {e}, "D", true);
  check(in.dt_bias, {e}, "dt_bias", true);
  check(in.z, {t, e}, "z", true);
  require(!in.rates || in.rates.shape() == Shape({n, e}), "selective_scan: rates are ", in.rates.shape(), ", expected ",
          Shape({n, e}));
  if (!h) return;
  require(h->value.rank() == 3, "selective_scan: the state is ", h->value.shape(), ", expected (slots, n, e)");
  check(*h, {h->value.size(0), n, e}, "the state");
}

// Whether a kernel multiplies dt's factors on its way.
bool multiplies_dt(const Ctx& ctx, const ScanForward& args) {
  if constexpr (kHasCuda) return ctx.device.is_cuda() && !ctx.tape && !ctx.kept && cuda::step_multiplies_dt(args);
  return false;
}

}  // namespace

Tensor scan_starts(const Ctx& ctx, const Seqs& seqs, int64_t n, int64_t e, DType activations) {
  const bool gpu = ctx.device.is_cuda();
  const int64_t chunk = gpu ? kScanChunkCuda : kScanChunk;
  int64_t chunks = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) chunks += (seqs.length(s) + chunk - 1) / chunk;
  return Tensor::empty({chunks, n, e}, gpu && activations == DType::bf16 ? DType::bf16 : accumulator_of(activations),
                       ctx.device);
}

Tensor scan_rates(const Ctx& ctx, const Tensor& A_log) {
  if (ctx.device.is_ref()) return {};
  const Tensor rates = Tensor::empty({A_log.size(1), A_log.size(0)}, DType::f32, ctx.device);
  if (!ctx.device.is_cuda())
    cpu::scan_rates(A_log, rates);
  else if constexpr (kHasCuda)
    cuda::scan_rates(A_log, rates, cuda::stream(ctx.device));
  return rates;
}

Var selective_scan(const Ctx& ctx, const ScanIn& in, const Seqs& seqs, Var* h) {
  check_inputs(in, seqs, h);
  const int64_t e = in.x.value.size(1), n = in.B.value.size(1);
  const DType dtype = in.x.value.dtype();
  ScanForward args{.x = in.x.value,
                   .dt = in.dt.value,
                   .A_log = in.A_log.value,
                   .B = in.B.value,
                   .C = in.C.value,
                   .D = in.D.value,
                   .dt_bias = in.dt_bias.value,
                   .z = in.z.value,
                   .dt_weight = in.dt_weight.value,
                   .seqs = &seqs};
  if (h) args.h = ctx.tape ? h->value.clone() : h->value;
  if (!ctx.tape) args.rates = in.rates;
  Var dt = in.dt;
  if (in.dt_weight && !multiplies_dt(ctx, args)) {
    dt = linear(ctx, in.dt, in.dt_weight);
    args.dt = dt.value, args.dt_weight = {};
  }
  const bool second_run = ctx.kept && ctx.kept->second_run;
  args.out = Tensor::empty(in.x.value.shape(), dtype, ctx.device);
  if (second_run) {
    args.starts = ctx.kept->take();
  } else {
    if (ctx.tape || ctx.kept) args.starts = scan_starts(ctx, seqs, n, e, dtype);
    SSM_RUN(ctx.device, *ctx.threads, selective_scan_forward, args);
    if (ctx.kept) ctx.kept->tensors.push_back(args.starts);
  }

  Var out = ctx.output(args.out);
  if (ctx.kept || (ctx.tape && ctx.recompute != Recompute::nothing)) out.late = std::make_shared<Late>();
  // The second run has no need of `out` but for the gradient that goes with it; who has gets an Error.
  if (second_run) out.value = {};
  if (!ctx.tape) return out;
  std::vector<GradPtr> outputs = {out.grad};
  GradPtr dh_start;
  if (h) {
    dh_start = h->grad;
    *h = ctx.output(args.h);
    outputs.push_back(h->grad);
  }
  ctx.tape->record("selective_scan",
                   {{"x", args.x},
                    {"dt", args.dt},
                    {"A_log", args.A_log},
                    {"B", args.B},
                    {"C", args.C},
                    {"D", args.D},
                    {"dt_bias", args.dt_bias},
                    {"z", args.z},
                    {"starts", args.starts}},
                   outputs,
                   [device = ctx.device, threads = ctx.threads, seqs, has_state = h != nullptr, dx = in.x.grad,
                    ddt = dt.grad, dA_log = in.A_log.grad, dB = in.B.grad, dC = in.C.grad, dD = in.D.grad,
                    ddt_bias = in.dt_bias.grad, dz = in.z.grad, dh_start, late = out.late](const Backward& b) {
                     const GradOut x_out(dx), dt_out(ddt), A_log_out(dA_log), B_out(dB), C_out(dC), D_out(dD),
                         bias_out(ddt_bias), z_out(dz), h_out(dh_start);
                     ScanBackward back{.x = b.saved("x"),
                                       .dt = b.saved("dt"),
                                       .A_log = b.saved("A_log"),
                                       .B = b.saved("B"),
                                       .C = b.saved("C"),
                                       .D = b.saved("D"),
                                       .dt_bias = b.saved("dt_bias"),
                                       .z = b.saved("z"),
                                       .starts = b.saved("starts"),
                                       .seqs = &seqs,
                                       .dout = b.grad(0),
                                       .dx = x_out.out,
                                       .ddt = dt_out.out,
                                       .dA_log = A_log_out.out,
                                       .dB = B_out.out,
                                       .dC = C_out.out,
                                       .dD = D_out.out,
                                       .ddt_bias = bias_out.out,
                                       .dz = z_out.out};
                     // Slots that no sequence used keep the gradient of their final, unchanged state.
                     if (has_state) back.dh = b.grad(1).clone();
                     const bool awaited = late && !late->waiting.empty();
                     if (awaited) back.out = Tensor::empty(back.x.shape(), back.x.dtype(), device);
                     SSM_RUN(device, *threads, selective_scan_backward, back);
                     if (h_out.out) h_out.out.copy_from(back.dh);
                     if (!awaited) return;
                     for (const auto& then : late->waiting) then(back.out);
                     late->waiting.clear();
                   });
  return out;
}

}  // namespace ssm
