// The front of multiply: checks, allocation, choice of the version, record of the backward.
#include "ops/multiply/multiply.h"

namespace ssm {

Var multiply(const Ctx& ctx, const Var& a, const Var& b) {
  const Shape shape = a.value.shape();
  require(shape.rank() == 2 && b.value.shape() == shape, "multiply: a is ", shape, " and b ", b.value.shape(),
          ", expected (t, d) both");
  const Var y = ctx.output(Tensor::empty(shape, a.value.dtype(), ctx.device));
  const Product forward{.a = a.value, .b = b.value, .y = y.value};
  SSM_RUN(ctx.device, *ctx.threads, multiply, forward);
  if (ctx.tape)
    ctx.tape->record("multiply", {{"a", a.value}, {"b", b.value}}, {y.grad},
                     [device = ctx.device, threads = ctx.threads, da = a.grad, db = b.grad](const Backward& back) {
                       // (2). One after the other: of a square they are one gradient, to which the second is added.
                       for (const auto& [grad, other] : {std::pair{da, "b"}, {db, "a"}}) {
                         const GradOut out(grad);
                         if (!out.out) continue;
                         const Product product{.a = back.grad(0), .b = back.saved(other), .y = out.out};
                         SSM_RUN(device, *threads, multiply, product);
                       }
                     });
  return y;
}

}  // namespace ssm
