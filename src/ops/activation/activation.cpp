// The fronts of gelu and glu: checks, allocation, choice of the version, record of the backward.
#include "ops/activation/activation.h"

namespace ssm {
namespace {

using Forward = void (*)(const ActivationForward&, Threads&);
using Backwards = void (*)(const ActivationBackward&, Threads&);

Var apply(const Ctx& ctx, const char* name, const Var& x, int64_t width, Forward forward, Backwards backward) {
  const Var y = ctx.output(Tensor::empty({x.value.size(0), width}, x.value.dtype(), ctx.device));
  forward({.x = x.value, .y = y.value}, *ctx.threads);
  if (ctx.tape)
    ctx.tape->record(name, {{"x", x.value}}, {y.grad},
                     [threads = ctx.threads, backward, dx = x.grad](const Backward& b) {
                       const GradOut x_out(dx);
                       if (x_out.out) backward({.x = b.saved("x"), .dy = b.grad(0), .dx = x_out.out}, *threads);
                     });
  return y;
}

void check(const Ctx& ctx, const char* name, const Var& x) {
  require(!ctx.device.is_cuda(), name, ": does not run on a GPU yet; use --device cpu");
  require(x.value.rank() == 2, name, ": x is ", x.value.shape(), ", expected (t, d)");
}

}  // namespace

Var gelu(const Ctx& ctx, const Var& x) {
  check(ctx, "gelu", x);
  const bool plain = ctx.device.is_ref();
  return apply(ctx, "gelu", x, x.value.size(1), plain ? ref::gelu_forward : cpu::gelu_forward,
               plain ? ref::gelu_backward : cpu::gelu_backward);
}

Var glu(const Ctx& ctx, const Var& x) {
  check(ctx, "glu", x);
  require(x.value.size(1) % 2 == 0, "glu: x is ", x.value.shape(), ", expected an even number of columns");
  const bool plain = ctx.device.is_ref();
  return apply(ctx, "glu", x, x.value.size(1) / 2, plain ? ref::glu_forward : cpu::glu_forward,
               plain ? ref::glu_backward : cpu::glu_backward);
}

}  // namespace ssm
