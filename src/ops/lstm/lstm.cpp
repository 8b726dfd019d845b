// The front of lstm: checks, allocation, choice of the version, record of the backward.
#include "ops/lstm/lstm.h"

namespace ssm {
namespace {

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Seqs& seqs, const Tensor& h,
           const Tensor& c) {
  require(x.rank() == 2 && x.size(0) == seqs.tokens() && x.size(1) > 0 && x.size(1) % 4 == 0, "lstm: x is ", x.shape(),
          ", expected (", seqs.tokens(), ", 4 e)");
  const int64_t e = x.size(1) / 4;
  require(weight.shape() == Shape{4 * e, e}, "lstm: weight is ", weight.shape(), ", expected (", 4 * e, ", ", e, ")");
  require(!bias || bias.shape() == Shape{4 * e}, "lstm: bias is ", bias.shape(), ", expected (", 4 * e, ")");
  if (!h && !c) return;
  require(h && c && h.rank() == 2 && h.size(1) == e && c.shape() == h.shape(), "lstm: h is ", h.shape(), " and c ",
          c.shape(), ", expected (slots, ", e, ")");
  for (const int64_t slot : seqs.slots)
    require(0 <= slot && slot < h.size(0), "lstm: slot ", slot, " of a state with ", h.size(0), " slots");
}

struct Wanted {
  GradPtr x, weight, bias, h, c;
};

void backward(const Device& device, Threads& threads, const Seqs& seqs, const Wanted& wanted, const Backward& b) {
  const GradOut x_out(wanted.x), weight_out(wanted.weight), bias_out(wanted.bias), h_out(wanted.h), c_out(wanted.c);
  LstmBackward back{.weight = b.saved("weight"),
                    .gates = b.saved("gates"),
                    .cells = b.saved("cells"),
                    .y = b.saved("y"),
                    .h = b.saved("h"),
                    .c = b.saved("c"),
                    .seqs = seqs,
                    .dy = b.grad(0)};
  if (back.h) back.dnew_h = b.grad_if_any(1), back.dnew_c = b.grad_if_any(2);
  back.dx = x_out.out ? x_out.out : Tensor::empty(back.gates.shape(), back.y.dtype(), device);
  back.dweight = weight_out.out;
  back.dbias = bias_out.out;
  back.dh = h_out.out;
  back.dc = c_out.out;
  SSM_RUN(device, threads, lstm_backward, back);
}

}  // namespace

Var lstm(const Ctx& ctx, const Var& x, const Var& weight, const Var& bias, const Seqs& seqs, Var* h, Var* c) {
  require((h == nullptr) == (c == nullptr), "lstm: a state is h and c");
  const Var h_before = h ? *h : Var{}, c_before = c ? *c : Var{};
  check(x.value, weight.value, bias.value, seqs, h_before.value, c_before.value);
  const int64_t t = x.value.size(0), e = x.value.size(1) / 4;
  const auto empty = [&](int64_t columns, DType dtype) { return Tensor::empty({t, columns}, dtype, ctx.device); };
  LstmForward args{
      .x = x.value, .weight = weight.value, .bias = bias.value, .seqs = seqs, .h = h_before.value, .c = c_before.value};
  args.y = empty(e, x.value.dtype());
  if (ctx.tape) {
    args.gates = empty(4 * e, accumulator_of(x.value.dtype()));
    args.cells = empty(e, accumulator_of(x.value.dtype()));
    if (h) args.h = args.h.clone(), args.c = args.c.clone();
  }
  SSM_RUN(ctx.device, *ctx.threads, lstm_forward, args);
  const Var y = ctx.output(args.y);
  if (!ctx.tape) return y;
  std::vector<GradPtr> outputs = {y.grad};
  if (h) {
    *h = ctx.output(args.h);
    *c = ctx.output(args.c);
    outputs.insert(outputs.end(), {h->grad, c->grad});
  }
  const Wanted wanted{x.grad, weight.grad, bias.grad, h_before.grad, c_before.grad};
  ctx.tape->record("lstm",
                   {{"weight", weight.value},
                    {"gates", args.gates},
                    {"cells", args.cells},
                    {"y", args.y},
                    {"h", h_before.value},
                    {"c", c_before.value}},
                   outputs, [device = ctx.device, threads = ctx.threads, seqs, wanted](const Backward& b) {
                     backward(device, *threads, seqs, wanted, b);
                   });
  return y;
}

}  // namespace ssm
