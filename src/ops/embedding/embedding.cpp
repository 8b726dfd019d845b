// The front of embedding: checks, allocation, choice of the kernel, record of the backward.
#include "ops/embedding/embedding.h"

namespace ssm {

void check_token_ids(const Tensor& ids, int64_t vocab) {
  for (int64_t t = 0; t < ids.count(); ++t) {
    const int64_t id = ids.data<int64_t>()[t];
    require(0 <= id && id < vocab, "token id ", id, " at position ", t, " is outside the vocabulary of ", vocab,
            "; expected 0 to ", vocab - 1);
  }
}

Var embedding(const Ctx& ctx, const Tensor& ids, const Var& weight) {
  const Shape& table = weight.value.shape();
  require(table.rank() == 2, "embedding: weight is ", table, ", expected (vocab, d)");
  require(ids.rank() == 1 && ids.dtype() == DType::i64, "embedding: ids are ", name_of(ids.dtype()), " ", ids.shape(),
          ", expected i64 (t)");
  // Ids that are on a GPU already were chosen or checked before.
  if (!ids.device().is_cuda()) check_token_ids(ids, table[0]);
  EmbeddingForward args{.ids = ids.on(ctx.device), .weight = weight.value};
  const DType dtype = ctx.device.kind == Device::Kind::cpu ? DType::f32 : weight.value.dtype();
  args.y = Tensor::empty({ids.count(), table[1]}, dtype, ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, embedding_forward, args);

  const Var y = ctx.output(args.y);
  if (ctx.tape) {
    ctx.tape->record(
        "embedding", {{"ids", args.ids}}, {y.grad},
        [device = ctx.device, threads = ctx.threads, dweight = weight.grad](const Backward& b) {
          const GradInPlace weight_out = write_in_place(dweight);
          if (!weight_out.out) return;
          const EmbeddingBackward back{
              .ids = b.saved("ids"), .dy = b.grad(), .dweight = weight_out.out, .add = weight_out.accumulate};
          SSM_RUN(device, *threads, embedding_backward, back);
        });
  }
  return y;
}

}  // namespace ssm
