// gelu and glu on a GPU: one pass over memory, several neighbours a thread where rows allow it. Equations: README.md.
#include "ops/activation/activation.h"
#include "ops/elementwise.cuh"

namespace ssm::cuda {
namespace {

__device__ __forceinline__ float normal_distribution(float x) { return 0.5f * erfcf(-0.70710678f * x); }
// The accurate forms: an input near 0 leaves nothing for the fast ones to lose, a large one does.
__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// Each of these computes kCount neighbours of row t from column c on.
template <class T, int kCount>
struct GeluForward {
  Rows<const T> x;
  Rows<T> y;
  __device__ void operator()(int64_t t, int64_t c) const {
    float v[kCount];
    load_floats(x[t] + c, v);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] *= normal_distribution(v[i]);  // (1)
    store_floats(y[t] + c, v);
  }
};

template <class T, int kCount>
struct GeluBackward {
  Rows<const T> x, dy;
  Rows<T> dx;
  __device__ void operator()(int64_t t, int64_t c) const {
    constexpr float kScale = 0.3989422804f;  // 1 / sqrt(2 pi)
    float v[kCount], d[kCount];
    load_floats(x[t] + c, v);
    load_floats(dy[t] + c, d);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      d[i] *= fmaf(v[i] * kScale, expf(-0.5f * v[i] * v[i]), normal_distribution(v[i]));  // (3)
    store_floats(dx[t] + c, d);
  }
};

template <class T, int kCount>
struct GluForward {
  Rows<const T> x;
  Rows<T> y;
  int64_t columns;  // of y
  __device__ void operator()(int64_t t, int64_t c) const {
    float a[kCount], b[kCount];
    load_floats(x[t] + c, a);
    load_floats(x[t] + columns + c, b);
#pragma unroll
    for (int i = 0; i < kCount; ++i) a[i] *= sigmoid(b[i]);  // (2)
    store_floats(y[t] + c, a);
  }
};

template <class T, int kCount>
struct GluBackward {
  Rows<const T> x, dy;
  Rows<T> dx;
  int64_t columns;  // of dy
  __device__ void operator()(int64_t t, int64_t c) const {
    float a[kCount], b[kCount], d[kCount];
    load_floats(x[t] + c, a);
    load_floats(x[t] + columns + c, b);
    load_floats(dy[t] + c, d);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {  // (4)
      const float gate = sigmoid(b[i]);
      b[i] = d[i] * a[i] * gate * (1 - gate);
      a[i] = d[i] * gate;
    }
    store_floats(dx[t] + c, a);
    store_floats(dx[t] + columns + c, b);
  }
};

}  // namespace

void gelu_forward(const ActivationForward& args, Stream stream) {
  elementwise("gelu", args.y, args.y.size(1), {args.x, args.y}, stream,
              [&]<class T, int kCount>(T, std::integral_constant<int, kCount>) {
                return GeluForward<T, kCount>{rows<const T>(args.x), rows<T>(args.y)};
              });
}

void gelu_backward(const ActivationBackward& args, Stream stream) {
  elementwise("gelu", args.dx, args.dx.size(1), {args.x, args.dy, args.dx}, stream,
              [&]<class T, int kCount>(T, std::integral_constant<int, kCount>) {
                return GeluBackward<T, kCount>{rows<const T>(args.x), rows<const T>(args.dy), rows<T>(args.dx)};
              });
}

void glu_forward(const ActivationForward& args, Stream stream) {
  elementwise("glu", args.y, args.y.size(1), {args.x, args.y}, stream,
              [&]<class T, int kCount>(T, std::integral_constant<int, kCount>) {
                return GluForward<T, kCount>{rows<const T>(args.x), rows<T>(args.y), args.y.size(1)};
              });
}

void glu_backward(const ActivationBackward& args, Stream stream) {
  elementwise(
      "glu", args.dx, args.dy.size(1), {args.x, args.dy, args.dx}, stream,
      [&]<class T, int kCount>(T, std::integral_constant<int, kCount>) {
        return GluBackward<T, kCount>{rows<const T>(args.x), rows<const T>(args.dy), rows<T>(args.dx), args.dy.size(1)};
      });
}

}  // namespace ssm::cuda
