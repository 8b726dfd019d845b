// The fronts of cross_entropy: checks, allocation, choice of the kernel, record of the backward.
#include "ops/cross_entropy/cross_entropy.h"

namespace ssm {
namespace {

// The ids come on the host, where they are checked; the kernels get them where they run.
Targets targets_of(const Ctx& ctx, const char* op, const Tensor& ids, int64_t rows, int64_t vocab, int64_t ignore) {
  require(ids.dtype() == DType::i64 && ids.shape() == Shape{rows}, op, ": targets are ", name_of(ids.dtype()), " ",
          ids.shape(), ", expected i64 (", rows, ")");
  Targets targets = check_targets(op, ids, vocab, ignore);
  targets.ids = ids.on(ctx.device);
  return targets;
}

void check_linear(const char* op, const Tensor& x, const Tensor& weight) {
  require(x.rank() == 2 && weight.rank() == 2 && x.size(1) == weight.size(1), op, ": x is ", x.shape(), ", weight ",
          weight.shape(), "; expected (t, d) and (vocab, d)");
}

LinearCrossEntropyForward linear_arguments(const Ctx& ctx, const Tensor& x, const Tensor& weight, Targets targets) {
  return {.x = x,
          .weight = weight,
          .targets = std::move(targets),
          .losses = Tensor::empty({x.size(0)}, accumulator_of(x.dtype()), ctx.device),
          .loss = Tensor::empty({1}, accumulator_of(x.dtype()), ctx.device)};
}

}  // namespace

Targets check_targets(const char* op, const Tensor& ids, int64_t vocab, int64_t ignore) {
  Targets targets{.ids = ids, .ignore = ignore, .counted = 0};
  for (int64_t t = 0; t < ids.count(); ++t) {
    const int64_t id = ids.data<int64_t>()[t];
    require((0 <= id && id < vocab) || id == ignore, op, ": target ", id, " at position ", t,
            " is outside the vocabulary of ", vocab, "; expected 0 to ", vocab - 1, ", or ", ignore,
            " to leave the position out");
    targets.counted += id != ignore;
  }
  return targets;
}

Var cross_entropy(const Ctx& ctx, const Var& logits, const Tensor& targets, int64_t ignore) {
  const Shape& shape = logits.value.shape();
  require(shape.rank() == 2, "cross_entropy: logits are ", shape, ", expected (t, vocab)");
  const DType dtype = accumulator_of(logits.value.dtype());
  const CrossEntropyForward args{.logits = logits.value,
                                 .targets = targets_of(ctx, "cross_entropy", targets, shape[0], shape[1], ignore),
                                 .losses = Tensor::empty({shape[0]}, dtype, ctx.device),
                                 .loss = Tensor::empty({1}, dtype, ctx.device)};
  SSM_RUN(ctx.device, *ctx.threads, cross_entropy_forward, args);

  const Var loss = ctx.output(args.loss);
  if (ctx.tape) {
    ctx.tape->record("cross_entropy", {{"logits", logits.value}, {"targets", args.targets.ids}}, {loss.grad},
                     [device = ctx.device, threads = ctx.threads, dlogits = logits.grad, ignore,
                      counted = args.targets.counted](const Backward& b) {
                       const GradOut logits_out(dlogits);
                       if (!logits_out.out) return;
                       const CrossEntropyBackward back{
                           .logits = b.saved("logits"),
                           .targets = {.ids = b.saved("targets"), .ignore = ignore, .counted = counted},
                           .dloss = b.grad(),
                           .dlogits = logits_out.out};
                       SSM_RUN(device, *threads, cross_entropy_backward, back);
                     });
  }
  return loss;
}

Var linear_cross_entropy(const Ctx& ctx, const Var& x, const Var& weight, const Tensor& targets, int64_t ignore) {
  constexpr const char* kName = "linear_cross_entropy";
  check_linear(kName, x.value, weight.value);
  return linear_cross_entropy(ctx, x, weight,
                              targets_of(ctx, kName, targets, x.value.size(0), weight.value.size(0), ignore));
}

Var linear_cross_entropy(const Ctx& ctx, const Var& x, const Var& weight, const Targets& targets) {
  check_linear("linear_cross_entropy", x.value, weight.value);
  require(targets.ids.dtype() == DType::i64 && targets.ids.shape() == Shape{x.value.size(0)} &&
              targets.ids.device().is_cuda() == ctx.device.is_cuda(),
          "linear_cross_entropy: targets are ", name_of(targets.ids.dtype()), " ", targets.ids.shape(), " on ",
          name_of(targets.ids.device()), ", expected i64 (", x.value.size(0), ") on ", name_of(ctx.device));
  LinearCrossEntropyForward args = linear_arguments(ctx, x.value, weight.value, targets);
  if (ctx.tape) {
    require(weight.value.dtype() == x.value.dtype(), "linear_cross_entropy: gradients need a weight in ",
            name_of(x.value.dtype()), " as x is, found ", name_of(weight.value.dtype()));
    if (x.grad) args.dx = Tensor::empty(x.value.shape(), x.grad->dtype, ctx.device);
    if (weight.grad) args.dweight = Tensor::empty(weight.value.shape(), weight.grad->dtype, ctx.device);
  }
  SSM_RUN(ctx.device, *ctx.threads, linear_cross_entropy_forward, args);

  const Var loss = ctx.output(args.loss);
  if (ctx.tape) {
    ctx.tape->record(
        "linear_cross_entropy", {{"dx", args.dx}, {"dweight", args.dweight}}, {loss.grad},
        [device = ctx.device, threads = ctx.threads, dx = x.grad, dweight = weight.grad](const Backward& b) {
          const GradInPlace x_out = write_in_place(dx), weight_out = write_in_place(dweight);
          const LinearCrossEntropyBackward back{.mean_dx = b.saved("dx"),
                                                .mean_dweight = b.saved("dweight"),
                                                .dloss = b.grad(),
                                                .dx = x_out.out,
                                                .dweight = weight_out.out,
                                                .add_dx = x_out.accumulate,
                                                .add_dweight = weight_out.accumulate};
          SSM_RUN(device, *threads, linear_cross_entropy_backward, back);
        });
  }
  return loss;
}

Tensor linear_token_losses(const Ctx& ctx, const Tensor& x, const Tensor& weight, const Tensor& targets,
                           int64_t ignore) {
  constexpr const char* kName = "linear_token_losses";
  check_linear(kName, x, weight);
  const LinearCrossEntropyForward args =
      linear_arguments(ctx, x, weight, targets_of(ctx, kName, targets, x.size(0), weight.size(0), ignore));
  SSM_RUN(ctx.device, *ctx.threads, linear_cross_entropy_forward, args);
  return args.losses;
}

}  // namespace ssm
