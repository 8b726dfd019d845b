#include "core/context.h"

namespace ssm {

std::vector<Var> split(const Ctx& ctx, const Var& value, std::initializer_list<int64_t> sizes) {
  std::vector<Var> parts;
  std::vector<GradPtr> grads;
  int64_t column = 0;
  for (const int64_t size : sizes) {
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

}  // namespace ssm
