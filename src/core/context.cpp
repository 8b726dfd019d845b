#include "core/context.h"

namespace ssm {

std::vector<Var> split(const Ctx& ctx, const Var& value, std::initializer_list<int64_t> sizes) {
  std::vector<Var> parts;
  std::vector<GradPtr> grads;
  int64_t column = 0;
  for (const int64_t size : sizes) {
    if (size == 0) {
      parts.emplace_back();
      continue;
    }
    Var part = ctx.output(value.value.columns(column, column + size));
    if (part.grad) {
      part.grad->whole = value.grad;
      part.grad->first_column = column;
      grads.push_back(part.grad);
    }
    parts.push_back(std::move(part));
    column += size;
  }
  require(column == value.value.size(-1), "split into ", column, " columns of ", value.value.size(-1));
  if (ctx.tape) {
    ctx.tape->record("split", {}, grads, [whole = value.grad, count = grads.size()](const Backward& b) {
      require(!whole->written, "a split value has another consumer");
      for (size_t i = 0; i < count; ++i) b.grad(i);  // zeros where a part was not used
      whole->written = true;
    });
  }
  return parts;
}

Var join(const Ctx& ctx, const Var& left, const Var& right) {
  const int64_t t = left.value.size(0), a = left.value.size(1), all = a + right.value.size(1);
  const Var joined = ctx.output(Tensor::empty({t, all}, left.value.dtype(), ctx.device));
  joined.value.columns(0, a).copy_from(left.value);
  joined.value.columns(a, all).copy_from(right.value);
  if (ctx.tape)
    ctx.tape->record("join", {}, {joined.grad}, [a, all, dleft = left.grad, dright = right.grad](const Backward& b) {
      const GradOut left_out(dleft), right_out(dright);
      if (left_out.out) left_out.out.copy_from(b.grad().columns(0, a));
      if (right_out.out) right_out.out.copy_from(b.grad().columns(a, all));
    });
  return joined;
}

std::vector<Var> recompute(const Ctx& ctx, const char* name, bool keep, const std::vector<Var>& inputs,
                           const Recomputed& function) {
  if (!ctx.tape) return function(ctx, inputs);
  const auto kept = keep ? std::make_shared<Kept>() : nullptr;
  Ctx first = ctx;
  first.tape = nullptr;
  first.kept = kept.get();
  std::vector<Var> outputs;
  std::vector<GradPtr> grads;
  std::vector<LatePtr> late;
  for (const Var& result : function(first, inputs)) {
    outputs.push_back(result ? ctx.output(result.value) : Var{});
    outputs.back().late = result.late;
    grads.push_back(outputs.back().grad);
    late.push_back(result.late);
  }
  std::vector<Saved> saved;
  for (const Var& input : inputs) saved.push_back({"input", input.value});
  if (kept)
    for (const Tensor& tensor : kept->tensors) saved.push_back({"kept", tensor});
  // The inputs come back with the gradients they had, so the second run's backward writes where it should.
  ctx.tape->record(name, std::move(saved), grads, [ctx, kept, inputs, function, late](const Backward& b) {
    Tape tape;
    Ctx second = ctx;
    second.tape = &tape;
    second.recompute = Recompute::nothing;
    second.kept = kept.get();
    if (kept) kept->second_run = true;
    const std::vector<Var> again = function(second, inputs);
    for (size_t i = 0; i < again.size(); ++i) {
      // Who waits for what the first run gave is served by the second.
      if (late[i]) again[i].late->waiting = std::move(late[i]->waiting);
      const Tensor gradient = b.grad_if_any(i);
      if (!again[i].grad || !gradient) continue;
      again[i].grad->value = gradient;
      again[i].grad->written = true;
    }
    tape.backward(std::vector<std::pair<Var, Tensor>>{});
  });
  return outputs;
}

}  // namespace ssm
