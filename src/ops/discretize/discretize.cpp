// The front of discretize: checks, allocation, choice of the version, record of the backward.
#include "ops/discretize/discretize.h"

namespace ssm {
namespace {

void check(const Var& var, const Shape& expected, const char* name) {
  require(var.value.shape() == expected, "discretize: ", name, " is ", var.value.shape(), ", expected ", expected);
}

void check_inputs(const DiscretizeIn& in) {
  const Shape step = in.inv_dt.value.shape(), A = in.A_real.value.shape();
  require(step.rank() == 2 && A.rank() == 2 && A[0] > 0 && step[0] % A[0] == 0, "discretize: inv_dt is ", step,
          " and A_real ", A, ", expected (e, 1) and (s, n) with s a divisor of e");
  const int64_t e = step[0], s = A[0], n = A[1], parts = in.A_imag ? 2 : 1;
  check(in.inv_dt, {e, 1}, "inv_dt");
  if (in.A_imag) check(in.A_imag, {s, n}, "A_imag");
  check(in.B, {1, s, n, parts}, "B");
  check(in.C, {1, e, n, parts}, "C");
  if (!in.P) return;
  check(in.P, {1, s, n, 2}, "P");
  require(in.A_imag && in.method == Discretization::bilinear,
          "discretize: a low-rank part goes with a complex A and the bilinear rule");
}

}  // namespace

StateSpace discretize(const Ctx& ctx, const DiscretizeIn& in) {
  check_inputs(in);
  const Shape shape = {in.A_imag ? 2 : 1, in.A_real.value.size(1), in.inv_dt.value.size(0)};
  const auto output = [&] { return ctx.output(Tensor::empty(shape, in.inv_dt.value.dtype(), ctx.device)); };
  StateSpace out{.z = output(), .b = output(), .c = output()};
  if (in.P) out.f = output(), out.g = output();
  const DiscretizeForward args{.inv_dt = in.inv_dt.value,
                               .A_real = in.A_real.value,
                               .A_imag = in.A_imag.value,
                               .B = in.B.value,
                               .C = in.C.value,
                               .P = in.P.value,
                               .method = in.method,
                               .step = in.step,
                               .z = out.z.value,
                               .b = out.b.value,
                               .c = out.c.value,
                               .f = out.f.value,
                               .g = out.g.value};
  SSM_RUN(ctx.device, *ctx.threads, discretize_forward, args);
  if (!ctx.tape) return out;

  std::vector<GradPtr> outputs = {out.z.grad, out.b.grad, out.c.grad};
  if (in.P) outputs.insert(outputs.end(), {out.f.grad, out.g.grad});
  ctx.tape->record("discretize",
                   {{"inv_dt", args.inv_dt},
                    {"A_real", args.A_real},
                    {"A_imag", args.A_imag},
                    {"B", args.B},
                    {"C", args.C},
                    {"P", args.P}},
                   outputs,
                   [device = ctx.device, threads = ctx.threads, method = in.method, step = in.step,
                    dinv_dt = in.inv_dt.grad, dA_real = in.A_real.grad, dA_imag = in.A_imag.grad, dB = in.B.grad,
                    dC = in.C.grad, dP = in.P.grad](const Backward& b) {
                     const GradOut inv_dt_out(dinv_dt), A_real_out(dA_real), A_imag_out(dA_imag), B_out(dB), C_out(dC),
                         P_out(dP);
                     DiscretizeBackward back{.inv_dt = b.saved("inv_dt"),
                                             .A_real = b.saved("A_real"),
                                             .A_imag = b.saved("A_imag"),
                                             .B = b.saved("B"),
                                             .C = b.saved("C"),
                                             .P = b.saved("P"),
                                             .method = method,
                                             .step = step,
                                             .dz = b.grad(0),
                                             .db = b.grad(1),
                                             .dc = b.grad(2),
                                             .dinv_dt = inv_dt_out.out,
                                             .dA_real = A_real_out.out,
                                             .dA_imag = A_imag_out.out,
                                             .dB = B_out.out,
                                             .dC = C_out.out,
                                             .dP = P_out.out};
                     if (back.P) back.df = b.grad(3), back.dg = b.grad(4);
                     SSM_RUN(device, *threads, discretize_backward, back);
                   });
  return out;
}

}  // namespace ssm
