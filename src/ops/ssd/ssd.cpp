// The front of ssd: checks, allocation, choice of the kernel, record of the backward.
#include "ops/ssd/ssd.h"

namespace ssm {
namespace {

void check(const Var& var, const Shape& expected, const char* name) {
  require(var.value.shape() == expected, "ssd: ", name, " is ", var.value.shape(), ", expected ", expected);
}

SsdSizes check_inputs(const SsdIn& in, const Seqs& seqs, const Var* state) {
  const Shape x = in.x.value.shape(), A_log = in.A_log.value.shape(), B = in.B.value.shape();
  require(x.rank() == 2 && A_log.rank() == 1 && B.rank() == 2, "ssd: x is ", x, ", A_log ", A_log, " and B ", B,
          ", expected (t, m p), (m) and (t, g n)");
  const int64_t t = x[0], m = A_log[0], g = in.groups;
  require(m > 0 && x[1] % m == 0, "ssd: ", x[1], " channels do not divide into ", m, " heads");
  require(g > 0 && m % g == 0, "ssd: ", m, " heads do not divide into ", g, " groups");
  require(B[1] % g == 0, "ssd: the ", B[1], " columns of B do not divide into ", g, " groups");
  require(0 <= in.dt_max && in.dt_min <= in.dt_max, "ssd: steps are limited to ", in.dt_min, " to ", in.dt_max,
          ", expected an upper limit that is neither negative nor below the lower one");
  require(seqs.tokens() == t, "ssd: the sequences have ", seqs.tokens(), " tokens, x has ", t);
  const SsdSizes sizes{.m = m, .p = x[1] / m, .g = g, .n = B[1] / g};
  check(in.dt, {t, m}, "dt");
  check(in.B, {t, g * sizes.n}, "B");
  check(in.C, {t, g * sizes.n}, "C");
  if (in.D && in.D.value.shape() != Shape{m}) check(in.D, {m * sizes.p}, "D");
  if (in.dt_bias) check(in.dt_bias, {m}, "dt_bias");
  if (!state) return sizes;
  require(state->value.rank() == 4, "ssd: the state is ", state->value.shape(), ", expected (slots, m, n, p)");
  check(*state, {state->value.size(0), m, sizes.n, sizes.p}, "the state");
  return sizes;
}

int64_t spans_of(const Seqs& seqs, int64_t s) { return (seqs.length(s) + kSsdSpan - 1) / kSsdSpan; }

}  // namespace

int64_t ssd_spans(const Seqs& seqs) {
  int64_t spans = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) spans += spans_of(seqs, s);
  return spans;
}

std::vector<int64_t> ssd_first_spans(const Seqs& seqs) {
  std::vector<int64_t> first;
  int64_t next = 0;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    first.push_back(next);
    next += spans_of(seqs, s);
  }
  return first;
}

Var ssd(const Ctx& ctx, const SsdIn& in, const Seqs& seqs, Var* state) {
  const SsdSizes sizes = check_inputs(in, seqs, state);
  const DType dtype = in.x.value.dtype();
  SsdForward args{.x = in.x.value,
                  .dt = in.dt.value,
                  .A_log = in.A_log.value,
                  .B = in.B.value,
                  .C = in.C.value,
                  .D = in.D.value,
                  .dt_bias = in.dt_bias.value,
                  .sizes = sizes,
                  .dt_min = in.dt_min,
                  .dt_max = in.dt_max,
                  .seqs = &seqs};
  if (state) args.state = ctx.tape ? state->value.clone() : state->value;
  args.y = Tensor::empty(in.x.value.shape(), dtype, ctx.device);
  if (ctx.tape)
    args.starts = Tensor::empty({ssd_spans(seqs), sizes.m, sizes.n, sizes.p}, accumulator_of(dtype), ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, ssd_forward, args);

  const Var y = ctx.output(args.y);
  if (!ctx.tape) return y;
  std::vector<GradPtr> outputs = {y.grad};
  GradPtr dstate_start;
  if (state) {
    dstate_start = state->grad;
    *state = ctx.output(args.state);
    outputs.push_back(state->grad);
  }
  ctx.tape->record(
      "ssd",
      {{"x", args.x},
       {"dt", args.dt},
       {"A_log", args.A_log},
       {"B", args.B},
       {"C", args.C},
       {"D", args.D},
       {"dt_bias", args.dt_bias},
       {"starts", args.starts}},
      outputs,
      [device = ctx.device, threads = ctx.threads, seqs, sizes, dt_min = in.dt_min, dt_max = in.dt_max,
       has_state = state != nullptr, dx = in.x.grad, ddt = in.dt.grad, dA_log = in.A_log.grad, dB = in.B.grad,
       dC = in.C.grad, dD = in.D.grad, ddt_bias = in.dt_bias.grad, dstate_start](const Backward& b) {
        const GradOut x_out(dx), dt_out(ddt), A_log_out(dA_log), B_out(dB), C_out(dC), D_out(dD), bias_out(ddt_bias),
            state_out(dstate_start);
        SsdBackward back{.x = b.saved("x"),
                         .dt = b.saved("dt"),
                         .A_log = b.saved("A_log"),
                         .B = b.saved("B"),
                         .C = b.saved("C"),
                         .D = b.saved("D"),
                         .dt_bias = b.saved("dt_bias"),
                         .starts = b.saved("starts"),
                         .sizes = sizes,
                         .dt_min = dt_min,
                         .dt_max = dt_max,
                         .seqs = &seqs,
                         .dy = b.grad(0),
                         .dx = x_out.out,
                         .ddt = dt_out.out,
                         .dA_log = A_log_out.out,
                         .dB = B_out.out,
                         .dC = C_out.out,
                         .dD = D_out.out,
                         .ddt_bias = bias_out.out};
        // Slots that no sequence used keep the gradient of their final, unchanged state.
        if (has_state) back.dstate = b.grad(1).clone();
        SSM_RUN(device, *threads, ssd_backward, back);
        if (state_out.out) state_out.out.copy_from(back.dstate);
      });
  return y;
}

}  // namespace ssm
