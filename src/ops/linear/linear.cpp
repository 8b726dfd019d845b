// The front of linear: checks, allocation, choice of the kernel, record of the backward.
#include "ops/linear/linear.h"

namespace ssm {

Var linear(const Ctx& ctx, const Var& x, const Var& weight, const Var& bias, std::optional<DType> y_dtype) {
  const Shape& shape = x.value.shape();
  const Shape& out_in = weight.value.shape();
  require(shape.rank() == 2 && out_in.rank() == 2 && shape[1] == out_in[1], "linear: x is ", shape, ", weight ", out_in,
          "; expected (t, in) and (out, in)");
  require(!bias || bias.value.shape() == Shape{out_in[0]}, "linear: bias is ", bias.value.shape(), ", expected (",
          out_in[0], ")");
  LinearForward args{.x = x.value, .weight = weight.value, .bias = bias.value};
  args.y = Tensor::empty({shape[0], out_in[0]}, y_dtype.value_or(x.value.dtype()), ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, linear_forward, args);

  const Var y = ctx.output(args.y);
  if (ctx.tape) {
    const bool late = x.late && weight.grad;
    ctx.tape->record(
        "linear", {late ? Saved("x", Tensor()) : Saved("x", x), {"weight", weight.value}}, {y.grad},
        [device = ctx.device, threads = ctx.threads, dx = x.grad, dweight = weight.grad, dbias = bias.grad,
         x_late = late ? x.late : LatePtr()](const Backward& b) {
          const auto run = [device, threads](const LinearBackward& back) {
            SSM_RUN(device, *threads, linear_backward, back);
          };
          const GradInPlace x_out = write_in_place(dx);
          const GradOut bias_out(dbias);
          LinearBackward back{.x = b.saved("x"),
                              .weight = b.saved("weight"),
                              .dy = b.grad(),
                              .dx = x_out.out,
                              .dbias = bias_out.out,
                              .add_dx = x_out.accumulate};
          if (x_late) {  // (2) and (4) now, (3) when x is there
            run(back);
            x_late->waiting.push_back([run, dweight, weight = back.weight, dy = back.dy](const Tensor& value) {
              const GradInPlace out = write_in_place(dweight);
              run({.x = value, .weight = weight, .dy = dy, .dweight = out.out, .add_dweight = out.accumulate});
            });
            return;
          }
          const GradInPlace weight_out = write_in_place(dweight);
          back.dweight = weight_out.out;
          back.add_dweight = weight_out.accumulate;
          run(back);
        });
  }
  return y;
}

}  // namespace ssm
