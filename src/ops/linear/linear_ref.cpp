// The definition of linear in plain loops, f32 and f64. Equations: README.md.
#include "ops/linear/gemm.h"
#include "ops/linear/linear.h"

namespace ssm::ref {
namespace {

template <class T>
void forward(const LinearForward& args) {
  const auto x = args.x.matrix<T>(), weight = args.weight.matrix<T>(), y = args.y.matrix<T>();
  const T* bias = args.bias.data<T>();
  gemm(x, Transpose::no, weight, Transpose::yes, y, false);  // (1)
  if (!bias) return;
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t o = 0; o < y.columns; ++o) y[t][o] += bias[o];
}

template <class T>
void backward(const LinearBackward& args) {
  const auto x = args.x.matrix<T>(), weight = args.weight.matrix<T>(), dy = args.dy.matrix<T>();
  if (args.dx) gemm(dy, Transpose::no, weight, Transpose::no, args.dx.matrix<T>(), args.add_dx);             // (2)
  if (args.dweight) gemm(dy, Transpose::yes, x, Transpose::no, args.dweight.matrix<T>(), args.add_dweight);  // (3)
  if (!args.dbias) return;
  args.dbias.fill_zero();
  T* dbias = args.dbias.data<T>();
  for (int64_t t = 0; t < dy.rows; ++t)
    for (int64_t o = 0; o < dy.columns; ++o) dbias[o] += dy[t][o];  // (4)
}

}  // namespace

void linear_forward(const LinearForward& args, Threads&) {
  args.x.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void linear_backward(const LinearBackward& args, Threads&) {
  args.dy.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
