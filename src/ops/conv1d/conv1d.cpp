// The front of conv1d: checks, allocation, choice of the kernel, record of the backward.
#include "ops/conv1d/conv1d.h"

namespace ssm {
namespace {

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Seqs& seqs, const Tensor& state) {
  require(x.rank() == 2 && x.size(1) > 0, "conv1d: x is ", x.shape(), ", expected (t, e)");
  require(seqs.tokens() == x.size(0), "conv1d: x is ", x.shape(), " but the sequences have ", seqs.tokens(), " rows");
  require(weight.rank() == 3 && weight.size(0) == x.size(1) && weight.size(1) == 1 && weight.size(2) >= 1,
          "conv1d: weight is ", weight.shape(), ", expected (", x.size(1), ", 1, w)");
  require(!bias || bias.shape() == Shape{x.size(1)}, "conv1d: bias is ", bias.shape(), ", expected (", x.size(1), ")");
  if (!state) return;
  require(state.rank() == 3 && state.size(1) == weight.size(2) - 1 && state.size(2) == x.size(1), "conv1d: state is ",
          state.shape(), ", expected (slots, ", weight.size(2) - 1, ", ", x.size(1), ")");
  for (const int64_t slot : seqs.slots)
    require(0 <= slot && slot < state.size(0), "conv1d: slot ", slot, " of a state with ", state.size(0), " slots");
}

}  // namespace

Var conv1d(const Ctx& ctx, const Var& x, const Var& weight, const Var& bias, Activation activation, const Seqs& seqs,
           Var* state) {
  const Var before = state ? *state : Var{};
  check(x.value, weight.value, bias.value, seqs, before.value);
  const Shape shape = x.value.shape();
  const int64_t w = weight.value.size(2);
  Conv1dForward args{.x = x.value,
                     .weight = weight.value.reshape({shape[1], w}),
                     .bias = bias.value,
                     .state = w > 1 ? before.value : Tensor(),  // a width of 1 carries nothing
                     .seqs = seqs,
                     .activation = activation};
  args.y = Tensor::empty(shape, x.value.dtype(), ctx.device);
  args.new_state = ctx.tape ? args.state.clone() : args.state;
  SSM_RUN(ctx.device, *ctx.threads, conv1d_forward, args);

  const Var y = ctx.output(args.y);
  if (!ctx.tape) return y;
  std::vector<GradPtr> outputs = {y.grad};
  if (args.state) {
    *state = ctx.output(args.new_state);
    outputs.push_back(state->grad);
  }
  ctx.tape->record("conv1d", {{"x", x.value}, {"weight", args.weight}, {"bias", bias.value}, {"state", args.state}},
                   outputs,
                   [device = ctx.device, threads = ctx.threads, dx = x.grad, dweight = weight.grad, dbias = bias.grad,
                    dstate = args.state ? before.grad : nullptr, seqs, activation](const Backward& b) {
                     GradOut x_out(dx), weight_out(dweight), bias_out(dbias), state_out(dstate);
                     Conv1dBackward back{.x = b.saved("x"),
                                         .weight = b.saved("weight"),
                                         .bias = b.saved("bias"),
                                         .state = b.saved("state"),
                                         .seqs = seqs,
                                         .activation = activation,
                                         .dy = b.grad(0)};
                     if (back.state) back.dnew_state = b.grad_if_any(1);
                     back.dx = x_out.out;
                     if (weight_out.out) back.dweight = weight_out.out.reshape(back.weight.shape());
                     back.dbias = bias_out.out;
                     back.dstate = state_out.out;
                     SSM_RUN(device, *threads, conv1d_backward, back);
                   });
  return y;
}

}  // namespace ssm
