// Rows of a table by token id:
//
//   y_t = W_{ids_t}                                                                   (1)
//
//   ids (t) i64  weight (vocab, d)  ->  y (t, d)
//
// On cpu the weight is f32, bf16 or f16 and y f32: this op and `linear` alone know the storage dtypes. On ref both are
// f32 or f64, on cuda both f32, bf16 or f16, and ids that are on the GPU already are taken as they are. An id outside
// the vocabulary is an Error. Saved for backward: ids. The gradient of the weight is added to what is there, since a
// language model's head often shares the table. Traffic: one row read and one written a token.
#pragma once

#include "core/context.h"

namespace ssm {

Var embedding(const Ctx& ctx, const Tensor& ids, const Var& weight);

// Throws Error on an id on the host that is outside a vocabulary.
void check_token_ids(const Tensor& ids, int64_t vocab);

struct EmbeddingForward {
  Tensor ids, weight;
  Tensor y;  // output
};

struct EmbeddingBackward {
  Tensor ids, dy;
  Tensor dweight;    // output
  bool add = false;  // to what dweight holds; else its rows without a token become 0
};

namespace ref {
void embedding_forward(const EmbeddingForward&, Threads&);
void embedding_backward(const EmbeddingBackward&, Threads&);
}  // namespace ref
namespace cpu {
void embedding_forward(const EmbeddingForward&, Threads&);
void embedding_backward(const EmbeddingBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void embedding_forward(const EmbeddingForward&, Stream);
void embedding_backward(const EmbeddingBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
