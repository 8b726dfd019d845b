// The definition of multiply, f32 and f64.
#include "ops/multiply/multiply.h"

namespace ssm::ref {
namespace {

template <class T>
void product(const Product& args) {
  const auto a = args.a.matrix<T>(), b = args.b.matrix<T>(), y = args.y.matrix<T>();
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t c = 0; c < y.columns; ++c) y[t][c] = a[t][c] * b[t][c];  // (1)
}

}  // namespace

void multiply(const Product& args, Threads&) {
  args.y.dtype() == DType::f64 ? product<double>(args) : product<float>(args);
}

}  // namespace ssm::ref
