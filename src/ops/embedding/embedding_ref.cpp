// The definition of embedding in plain loops, f32 and f64. Equations: README.md.
#include "ops/embedding/embedding.h"

namespace ssm::ref {
namespace {

template <class T>
void forward(const EmbeddingForward& args) {
  const auto weight = args.weight.matrix<T>(), y = args.y.matrix<T>();
  const int64_t* ids = args.ids.data<int64_t>();
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t c = 0; c < y.columns; ++c) y[t][c] = weight[ids[t]][c];  // (1)
}

template <class T>
void backward(const EmbeddingBackward& args) {
  const auto dy = args.dy.matrix<T>(), dweight = args.dweight.matrix<T>();
  const int64_t* ids = args.ids.data<int64_t>();
  if (!args.add) args.dweight.fill_zero();
  for (int64_t t = 0; t < dy.rows; ++t)
    for (int64_t c = 0; c < dy.columns; ++c) dweight[ids[t]][c] += dy[t][c];  // (2)
}

}  // namespace

void embedding_forward(const EmbeddingForward& args, Threads&) {
  args.weight.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void embedding_backward(const EmbeddingBackward& args, Threads&) {
  args.dy.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
