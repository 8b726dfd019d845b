// The definition of gelu and glu, f32 and f64.
#include <cmath>

#include "ops/activation/activation.h"

namespace ssm::ref {
namespace {

template <class T>
T normal_distribution(T x) {
  return (1 + std::erf(x / std::sqrt(T(2)))) / 2;
}

template <class T>
T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

// Calls body(T()) for the tensor's type.
template <class Body>
void in_type_of(const Tensor& tensor, const Body& body) {
  tensor.dtype() == DType::f64 ? body(double()) : body(float());
}

}  // namespace

void gelu_forward(const ActivationForward& args, Threads&) {
  in_type_of(args.x, [&]<class T>(T) {
    const auto x = args.x.matrix<T>(), y = args.y.matrix<T>();
    for (int64_t t = 0; t < y.rows; ++t)
      for (int64_t c = 0; c < y.columns; ++c) y[t][c] = x[t][c] * normal_distribution(x[t][c]);  // (1)
  });
}

void gelu_backward(const ActivationBackward& args, Threads&) {
  in_type_of(args.x, [&]<class T>(T) {
    const auto x = args.x.matrix<T>(), dy = args.dy.matrix<T>(), dx = args.dx.matrix<T>();
    const T scale = 1 / std::sqrt(2 * static_cast<T>(M_PI));
    for (int64_t t = 0; t < dx.rows; ++t)
      for (int64_t c = 0; c < dx.columns; ++c) {
        const T v = x[t][c];
        dx[t][c] = dy[t][c] * (normal_distribution(v) + v * scale * std::exp(-v * v / 2));  // (3)
      }
  });
}

void glu_forward(const ActivationForward& args, Threads&) {
  in_type_of(args.x, [&]<class T>(T) {
    const auto x = args.x.matrix<T>(), y = args.y.matrix<T>();
    for (int64_t t = 0; t < y.rows; ++t)
      for (int64_t c = 0; c < y.columns; ++c) y[t][c] = x[t][c] * sigmoid(x[t][y.columns + c]);  // (2)
  });
}

void glu_backward(const ActivationBackward& args, Threads&) {
  in_type_of(args.x, [&]<class T>(T) {
    const auto x = args.x.matrix<T>(), dy = args.dy.matrix<T>(), dx = args.dx.matrix<T>();
    for (int64_t t = 0; t < dy.rows; ++t)
      for (int64_t c = 0; c < dy.columns; ++c) {  // (4)
        const T gate = sigmoid(x[t][dy.columns + c]);
        dx[t][c] = dy[t][c] * gate;
        dx[t][dy.columns + c] = dy[t][c] * x[t][c] * gate * (1 - gate);
      }
  });
}

}  // namespace ssm::ref
