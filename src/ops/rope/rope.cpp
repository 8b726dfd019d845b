// The front of rope: checks, allocation, choice of the version, record of the backward.
#include "ops/rope/rope.h"

#include <cmath>

namespace ssm {
namespace {

void turn(const Device& device, Threads& threads, const RopeTurn& args) { SSM_RUN(device, threads, rope_turn, args); }

}  // namespace

Var rope(const Ctx& ctx, const Var& x, int64_t heads, const Rotation& rotation, const Seqs& seqs,
         const std::vector<int64_t>& before) {
  const Shape shape = x.value.shape();
  require(shape.rank() == 2 && heads > 0 && shape[1] > 0 && shape[1] % heads == 0, "rope: x is ", shape,
          ", expected (t, ", heads, " times the width of a head)");
  require(seqs.tokens() == shape[0] && static_cast<int64_t>(before.size()) == seqs.count(), "rope: x is ", shape,
          " but the ", seqs.count(), " sequences have ", seqs.tokens(), " rows, and ", before.size(), " positions");
  require(0 < rotation.dim && rotation.dim <= shape[1] / heads && rotation.dim % 2 == 0, "rope: dim is ", rotation.dim,
          ", expected an even number up to the width of a head, ", shape[1] / heads);
  require(rotation.base > 0 && std::isfinite(rotation.base), "rope: base is ", rotation.base,
          ", expected a positive number");
  const Var y = ctx.output(Tensor::empty(shape, x.value.dtype(), ctx.device));
  turn(ctx.device, *ctx.threads, {x.value, heads, rotation, seqs, before, false, y.value});
  if (ctx.tape)
    ctx.tape->record(
        "rope", {}, {y.grad},
        [device = ctx.device, threads = ctx.threads, dx = x.grad, heads, rotation, seqs, before](const Backward& b) {
          const GradOut out(dx);
          if (out.out) turn(device, *threads, {b.grad(), heads, rotation, seqs, before, true, out.out});
        });
  return y;
}

}  // namespace ssm
