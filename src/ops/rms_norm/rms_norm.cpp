// The front of rms_norm: checks, allocation, choice of the kernel, record of the backward.
#include "ops/rms_norm/rms_norm.h"

namespace ssm {

NormedResidual rms_norm(const Ctx& ctx, const Var& x, const Var& residual, const Var& weight, double eps,
                        std::optional<DType> y_dtype) {
  const Shape shape = x.value.shape();
  require(shape.rank() == 2, "rms_norm: x is ", shape, ", expected (t, d)");
  require(!residual || residual.value.shape() == shape, "rms_norm: x is ", shape, ", residual ",
          residual.value.shape());
  require(!weight || weight.value.shape() == Shape{shape[1]}, "rms_norm: weight is ", weight.value.shape(),
          ", expected (", shape[1], ")");
  const DType dtype = y_dtype.value_or(x.value.dtype()), wide = accumulator_of(dtype);
  require(x.value.dtype() == dtype || (ctx.device.is_cuda() && x.value.dtype() == wide), "rms_norm: x is ",
          name_of(x.value.dtype()), ", y is asked for in ", name_of(dtype), "; expected the same, or x in ",
          name_of(wide), " on a GPU");
  RmsNormForward args{.x = x.value, .residual = residual.value, .weight = weight.value, .eps = eps};
  args.y = Tensor::empty(shape, dtype, ctx.device);
  // Without a residual r is x, unless it is to be wider than x.
  const bool new_sum = residual || x.value.dtype() != wide;
  args.sum = new_sum ? Tensor::empty(shape, wide, ctx.device) : Tensor();
  args.scale = Tensor::empty({shape[0]}, wide, ctx.device);
  const bool rounded =
      ctx.tape && ctx.device.is_cuda() && ctx.recompute != Recompute::nothing && new_sum && dtype != wide;
  if (rounded) args.kept = Tensor::empty(shape, dtype, ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, rms_norm_forward, args);

  Var y = ctx.output(args.y);
  if (rounded)
    y.again = std::make_shared<const std::function<Tensor()>>(
        [device = ctx.device, threads = ctx.threads, kept = args.kept, weight = weight.value, eps] {
          RmsNormForward again{.x = kept, .weight = weight, .eps = eps};
          again.y = Tensor::empty(kept.shape(), kept.dtype(), device);
          again.scale = Tensor::empty({kept.size(0)}, accumulator_of(kept.dtype()), device);
          SSM_RUN(device, *threads, rms_norm_forward, again);
          return again.y;
        });
  const Var sum = new_sum ? ctx.output(args.sum) : x;
  if (ctx.tape) {
    if (new_sum && x.grad && x.value.dtype() != dtype) x.grad->dtype = dtype;
    // Where r is x, whatever gradient r's users give goes to x's own, beside this op's.
    std::vector<GradPtr> outputs = {y.grad};
    if (new_sum) outputs.push_back(sum.grad);
    ctx.tape->record(
        "rms_norm", {{"sum", rounded ? args.kept : sum.value}, {"weight", weight.value}, {"scale", args.scale}},
        outputs,
        [device = ctx.device, threads = ctx.threads, dx = x.grad, dresidual = residual.grad, dweight = weight.grad,
         new_sum](const Backward& b) {
          GradOut x_out(dx), residual_out(dresidual), weight_out(dweight);
          RmsNormBackward back{
              .sum = b.saved("sum"), .weight = b.saved("weight"), .scale = b.saved("scale"), .dy = b.grad(0)};
          if (new_sum) back.dsum = b.grad_if_any(1);
          back.dx = x_out.out;
          back.dresidual = residual_out.out;
          back.dweight = weight_out.out;
          SSM_RUN(device, *threads, rms_norm_backward, back);
        });
  }
  return {y, sum};
}

}  // namespace ssm
