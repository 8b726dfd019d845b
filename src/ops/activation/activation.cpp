// The fronts of gelu and glu: checks, allocation, choice of the version, record of the backward.
#include "ops/activation/activation.h"

namespace ssm {
namespace {

// `forward(arguments)` and `backward(device, threads, arguments)` call the version of a device.
template <class Forward, class Backwards>
Var apply(const Ctx& ctx, const char* name, const Var& x, int64_t width, const Forward& forward, Backwards backward) {
  const Var y = ctx.output(Tensor::empty({x.value.size(0), width}, x.value.dtype(), ctx.device));
  forward(ActivationForward{.x = x.value, .y = y.value});
  if (ctx.tape)
    ctx.tape->record(name, {{"x", x.value}}, {y.grad},
                     [device = ctx.device, threads = ctx.threads, backward, dx = x.grad](const Backward& b) {
                       const GradOut x_out(dx);
                       if (x_out.out) backward(device, *threads, {.x = b.saved("x"), .dy = b.grad(0), .dx = x_out.out});
                     });
  return y;
}

void check(const char* name, const Var& x) {
  require(x.value.rank() == 2, name, ": x is ", x.value.shape(), ", expected (t, d)");
}

}  // namespace

Var gelu(const Ctx& ctx, const Var& x) {
  check("gelu", x);
  return apply(
      ctx, "gelu", x, x.value.size(1),
      [&](const ActivationForward& args) { SSM_RUN(ctx.device, *ctx.threads, gelu_forward, args); },
      [](const Device& device, Threads& threads, const ActivationBackward& args) {
        SSM_RUN(device, threads, gelu_backward, args);
      });
}

Var glu(const Ctx& ctx, const Var& x) {
  check("glu", x);
  require(x.value.size(1) % 2 == 0, "glu: x is ", x.value.shape(), ", expected an even number of columns");
  return apply(
      ctx, "glu", x, x.value.size(1) / 2,
      [&](const ActivationForward& args) { SSM_RUN(ctx.device, *ctx.threads, glu_forward, args); },
      [](const Device& device, Threads& threads, const ActivationBackward& args) {
        SSM_RUN(device, threads, glu_backward, args);
      });
}

}  // namespace ssm
