// The front of gated_rms_norm: checks, allocation, choice of the kernel, record of the backward.
#include "ops/gated_rms_norm/gated_rms_norm.h"

namespace ssm {
namespace {

Var run(const Ctx& ctx, const char* name, GatedNormForward args, const Var& y, const Var& z, const Var& weight) {
  const Shape shape = y.value.shape();
  require(shape.rank() == 2 && z.value.shape() == shape, name, ": y is ", shape, " and z ", z.value.shape(),
          ", expected (t, e) both");
  args.out = Tensor::empty(shape, y.value.dtype(), ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, gated_rms_norm_forward, args);
  const Var out = ctx.output(args.out);
  if (ctx.tape)
    ctx.tape->record(name, {{"y", args.y}, {"z", args.z}, {"weight", args.weight}, {"scale", args.scale}}, {out.grad},
                     [device = ctx.device, threads = ctx.threads, order = args.order, dy = y.grad, dz = z.grad,
                      dweight = weight.grad](const Backward& b) {
                       const GradOut y_out(dy), z_out(dz), weight_out(dweight);
                       const GatedNormBackward back{.y = b.saved("y"),
                                                    .z = b.saved("z"),
                                                    .weight = b.saved("weight"),
                                                    .scale = b.saved("scale"),
                                                    .order = order,
                                                    .dout = b.grad(0),
                                                    .dy = y_out.out,
                                                    .dz = z_out.out,
                                                    .dweight = weight_out.out};
                       SSM_RUN(device, *threads, gated_rms_norm_backward, back);
                     });
  return out;
}

}  // namespace

Var gated_rms_norm(const Ctx& ctx, const Var& y, const Var& z, const Var& weight, int64_t groups, double eps,
                   GateOrder order) {
  const int64_t e = y.value.size(-1);
  require(weight.value.shape() == Shape{e}, "gated_rms_norm: weight is ", weight.value.shape(), ", expected (", e, ")");
  require(groups > 0 && e % groups == 0, "gated_rms_norm: ", e, " channels do not divide into ", groups, " groups");
  return run(ctx, "gated_rms_norm",
             {.y = y.value,
              .z = z.value,
              .weight = weight.value,
              .eps = eps,
              .order = order,
              .scale = Tensor::empty({y.value.size(0), groups}, accumulator_of(y.value.dtype()), ctx.device)},
             y, z, weight);
}

Var gate(const Ctx& ctx, const Var& y, const Var& z) {
  return run(ctx, "gate", {.y = y.value, .z = z.value, .eps = 0, .order = GateOrder::gate_first}, y, z, {});
}

}  // namespace ssm
