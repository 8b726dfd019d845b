// The front of rms_norm: checks, allocation, choice of the kernel, record of the backward.
#include "ops/rms_norm/rms_norm.h"

namespace ssm {

NormedResidual rms_norm(const Ctx& ctx, const Var& x, const Var& residual, const Var& weight, double eps) {
  const Shape shape = x.value.shape();
  require(shape.rank() == 2, "rms_norm: x is ", shape, ", expected (t, d)");
  require(!residual || residual.value.shape() == shape, "rms_norm: x is ", shape, ", residual ",
          residual.value.shape());
  require(!weight || weight.value.shape() == Shape{shape[1]}, "rms_norm: weight is ", weight.value.shape(),
          ", expected (", shape[1], ")");
  const DType dtype = x.value.dtype();
  RmsNormForward args{.x = x.value, .residual = residual.value, .weight = weight.value, .eps = eps};
  args.y = Tensor::empty(shape, dtype, ctx.device);
  args.sum = residual ? Tensor::empty(shape, accumulator_of(dtype), ctx.device) : Tensor();
  args.scale = Tensor::empty({shape[0]}, accumulator_of(dtype), ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, rms_norm_forward, args);

  const Var y = ctx.output(args.y), sum = residual ? ctx.output(args.sum) : x;
  if (ctx.tape) {
    // Without a residual r is x: whatever gradient r's users give goes to x's own, beside this op's.
    std::vector<GradPtr> outputs = {y.grad};
    if (residual) outputs.push_back(sum.grad);
    ctx.tape->record(
        "rms_norm", {{"sum", sum.value}, {"weight", weight.value}, {"scale", args.scale}}, outputs,
        [device = ctx.device, threads = ctx.threads, dx = x.grad, dresidual = residual.grad, dweight = weight.grad,
         has_residual = static_cast<bool>(residual)](const Backward& b) {
          GradOut x_out(dx), residual_out(dresidual), weight_out(dweight);
          RmsNormBackward back{
              .sum = b.saved("sum"), .weight = b.saved("weight"), .scale = b.saved("scale"), .dy = b.grad(0)};
          if (has_residual) back.dsum = b.grad_if_any(1);
          back.dr = x_out.out ? x_out.out : residual_out.out;
          back.dweight = weight_out.out;
          SSM_RUN(device, *threads, rms_norm_backward, back);
          if (x_out.out && residual_out.out) residual_out.out.copy_from(x_out.out);
        });
  }
  return {y, sum};
}

}  // namespace ssm
