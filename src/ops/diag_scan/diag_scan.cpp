// The front of diag_scan: checks, allocation, choice of the version, record of the backward.
#include "ops/diag_scan/diag_scan.h"

namespace ssm {
namespace {

void check_inputs(const StateSpace& system, const Var& u, const Var& D, const Seqs& seqs, const Var* state) {
  const Shape z = system.z.value.shape(), x = u.value.shape();
  require(z.rank() == 3 && (z[0] == 1 || z[0] == 2) && x.rank() == 2 && x[1] == z[2], "diag_scan: z is ", z, " and u ",
          x, ", expected (1 or 2, n, e) and (t, e)");
  for (const auto& [name, var] : {std::pair{"b", &system.b}, {"c", &system.c}, {"f", &system.f}, {"g", &system.g}})
    require((!*var && (name[0] == 'f' || name[0] == 'g')) || var->value.shape() == z, "diag_scan: ", name, " is ",
            var->value.shape(), ", expected ", z);
  require(static_cast<bool>(system.f) == static_cast<bool>(system.g) && (!system.f || z[0] == 2),
          "diag_scan: f and g go together, with a complex system");
  require(!D || D.value.count() == x[1], "diag_scan: D is ", D.value.shape(), ", expected ", x[1], " numbers");
  require(seqs.tokens() == x[0], "diag_scan: the sequences have ", seqs.tokens(), " tokens, u has ", x[0]);
  if (!state) return;
  const Shape rows = state->value.shape();
  require(rows.rank() == 4 && rows == Shape{rows[0], z[0], z[1], z[2]}, "diag_scan: the state is ", rows,
          ", expected (slots, ", z[0], ", ", z[1], ", ", z[2], ")");
  for (const int64_t slot : seqs.slots)
    require(0 <= slot && slot < rows[0], "diag_scan: slot ", slot, " of a state with ", rows[0], " slots");
}

Var scan(const Ctx& ctx, const StateSpace& system, const Var& u, const Var& D, const Seqs& seqs, Var* state,
         bool outputs_wanted) {
  check_inputs(system, u, D, seqs, state);
  DiagScanForward args{.z = system.z.value,
                       .b = system.b.value,
                       .c = system.c.value,
                       .f = system.f.value,
                       .g = system.g.value,
                       .u = u.value,
                       .D = D.value,
                       .seqs = &seqs};
  if (state) args.state = ctx.tape ? state->value.clone() : state->value;
  if (outputs_wanted) args.y = Tensor::empty(u.value.shape(), u.value.dtype(), ctx.device);
  if (ctx.tape)
    args.starts = Tensor::empty({diag_scan_spans(seqs), system.parts(), system.modes(), system.channels()},
                                system.z.value.dtype(), ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, diag_scan_forward, args);

  Var y = outputs_wanted ? ctx.output(args.y) : Var{};
  if (!ctx.tape) return y;
  std::vector<GradPtr> outputs;
  if (outputs_wanted) outputs.push_back(y.grad);
  GradPtr dstate_start;
  if (state) {
    dstate_start = state->grad;
    *state = ctx.output(args.state);
    outputs.push_back(state->grad);
  }
  ctx.tape->record("diag_scan",
                   {{"z", args.z},
                    {"b", args.b},
                    {"c", args.c},
                    {"f", args.f},
                    {"g", args.g},
                    {"u", args.u},
                    {"D", args.D},
                    {"starts", args.starts}},
                   outputs,
                   [device = ctx.device, threads = ctx.threads, seqs, has_state = state != nullptr, outputs_wanted,
                    dz = system.z.grad, db = system.b.grad, dc = system.c.grad, df = system.f.grad, dg = system.g.grad,
                    du = u.grad, dD = D.grad, dstate_start](const Backward& back) {
                     const GradOut z_out(dz), b_out(db), c_out(dc), f_out(df), g_out(dg), u_out(du), D_out(dD),
                         state_out(dstate_start);
                     DiagScanBackward out{.z = back.saved("z"),
                                          .b = back.saved("b"),
                                          .c = back.saved("c"),
                                          .f = back.saved("f"),
                                          .g = back.saved("g"),
                                          .u = back.saved("u"),
                                          .D = back.saved("D"),
                                          .starts = back.saved("starts"),
                                          .seqs = &seqs,
                                          .du = u_out.out,
                                          .dD = D_out.out};
                     const auto sum = [&](const Tensor& like, const Tensor& wanted) {
                       return wanted || !like ? wanted : Tensor::empty(like.shape(), like.dtype(), like.device());
                     };
                     out.dz = sum(out.z, z_out.out);
                     out.db = sum(out.b, b_out.out);
                     out.dc = sum(out.c, c_out.out);
                     out.df = sum(out.f, f_out.out);
                     out.dg = sum(out.g, g_out.out);
                     if (outputs_wanted) out.dy = back.grad(0);
                     // Slots that no sequence used keep the gradient of their final, unchanged state.
                     if (has_state) out.dstate = back.grad(outputs_wanted ? 1 : 0).clone();
                     SSM_RUN(device, *threads, diag_scan_backward, out);
                     if (state_out.out) state_out.out.copy_from(out.dstate);
                   });
  return y;
}

}  // namespace

int64_t diag_scan_spans(const Seqs& seqs) { return seqs.tokens() / kDiagScanSpan + seqs.count(); }

int64_t diag_scan_first_span(const Seqs& seqs, int64_t s) {
  return seqs.offsets[static_cast<size_t>(s)] / kDiagScanSpan + s;
}

Var diag_scan(const Ctx& ctx, const StateSpace& system, const Var& u, const Var& D, const Seqs& seqs, Var* state) {
  return scan(ctx, system, u, D, seqs, state, true);
}

void diag_scan_state(const Ctx& ctx, const StateSpace& system, const Var& u, const Seqs& seqs, Var* state) {
  require(state, "diag_scan: no state to compute");
  scan(ctx, system, u, {}, seqs, state, false);
}

}  // namespace ssm
