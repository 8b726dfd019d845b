// multiply on a GPU: one pass over memory.
#include "ops/elementwise.cuh"
#include "ops/multiply/multiply.h"

namespace ssm::cuda {
namespace {

// kCount neighbours of row t from column c on.
template <class T, int kCount>
struct Multiply {
  Rows<const T> a, b;
  Rows<T> y;
  __device__ void operator()(int64_t t, int64_t c) const {
    float left[kCount], right[kCount];
    load_floats(a[t] + c, left);
    load_floats(b[t] + c, right);
#pragma unroll
    for (int i = 0; i < kCount; ++i) left[i] *= right[i];  // (1)
    store_floats(y[t] + c, left);
  }
};

}  // namespace

void multiply(const Product& args, Stream stream) {
  elementwise("multiply", args.y, args.y.size(1), {args.a, args.b, args.y}, stream,
              [&]<class T, int kCount>(T, std::integral_constant<int, kCount>) {
                return Multiply<T, kCount>{rows<const T>(args.a), rows<const T>(args.b), rows<T>(args.y)};
              });
}

}  // namespace ssm::cuda
