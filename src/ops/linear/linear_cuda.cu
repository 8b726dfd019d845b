// linear on a GPU: few rows stream the weight (few_rows_cuda.cu), more go to cuBLASLt (gemm_cuda.cu). The backward is
// two products, (2) and (3), and a sum of columns, (4).
#include "core/cuda_kernel.cuh"
#include "ops/linear/few_rows.h"
#include "ops/linear/gemm.h"
#include "ops/linear/linear.h"

namespace ssm::cuda {
namespace {

constexpr int kSumColumns = 32, kSumLanes = 8;  // a block's columns, and the rows it reads at once
constexpr int64_t kSumRows = 256;               // of a block

// Sums of kSumRows rows at a time, (blocks, columns); threads (column, lane).
template <class T>
__global__ void sum_rows_kernel(Rows<const T> dy, int64_t t, int64_t columns, float* partial) {
  __shared__ float sums[kSumLanes][kSumColumns];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  const int64_t begin = blockIdx.y * kSumRows, end = min(t, begin + kSumRows);
  float sum = 0;
  if (column < columns)
    for (int64_t row = begin + threadIdx.y; row < end; row += kSumLanes) sum += to_float(dy[row][column]);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= columns) return;
  for (int lane = 1; lane < kSumLanes; ++lane) sum += sums[lane][threadIdx.x];
  partial[blockIdx.y * columns + column] = sum;
}

// The blocks' sums in order.
__global__ void sum_blocks_kernel(const float* partial, int64_t blocks, int64_t columns, float* sums) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  float sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block * columns + column];
  sums[column] = sum;
}

void sum_columns(const Tensor& dy, const Tensor& sums, Stream stream) {
  const int64_t t = dy.size(0), columns = dy.size(1), blocks = divide_up(t, kSumRows);
  const Tensor partial = Tensor::empty({blocks, columns}, DType::f32, dy.device());
  const auto across = static_cast<unsigned>(divide_up(columns, kSumColumns));
  with_element(dy.dtype(), "linear", [&](auto element) {
    using T = decltype(element);
    launch("linear", sum_rows_kernel<T>, dim3(across, static_cast<unsigned>(blocks)), dim3(kSumColumns, kSumLanes),
           stream, rows<const T>(dy), t, columns, elements<float>(partial));
  });
  launch("linear", sum_blocks_kernel, dim3(static_cast<unsigned>(divide_up(columns, 256))), dim3(256), stream,
         elements<const float>(partial), blocks, columns, elements<float>(sums));
}

// x = high + low, each rounded to T.
template <class T>
__global__ void split_kernel(Rows<const float> x, int64_t count, int64_t columns, T* high, T* low) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const float value = x[i / columns][i % columns];
    high[i] = from_float<T>(value);
    low[i] = from_float<T>(value - to_float(high[i]));
  }
}

}  // namespace

void gemm_wide(const Tensor& a, const Tensor& b, const Tensor& c, Stream stream, const Tensor& bias) {
  const Tensor high = Tensor::empty(a.shape(), b.dtype(), a.device()),
               low = Tensor::empty(a.shape(), b.dtype(), a.device());
  if (a.count() == 0) return gemm(high, Transpose::no, b, Transpose::yes, c, false, stream, bias);
  with_element(b.dtype(), "linear", [&](auto element) {
    using T = decltype(element);
    launch("linear", split_kernel<T>, dim3(static_cast<unsigned>(std::min<int64_t>(4096, divide_up(a.count(), 256)))),
           dim3(256), stream, rows<const float>(a), a.count(), a.size(1), elements<T>(high), elements<T>(low));
  });
  gemm(high, Transpose::no, b, Transpose::yes, c, false, stream, bias);
  gemm(low, Transpose::no, b, Transpose::yes, c, true, stream);
}

void linear_forward(const LinearForward& args, Stream stream) {
  if (args.x.dtype() != args.weight.dtype())
    return gemm_wide(args.x, args.weight, args.y, stream, args.bias ? args.bias.to(DType::f32) : args.bias);
  if (few_rows_win(args.x, args.weight)) return few_rows(args.x, args.weight, args.bias, args.y, stream);
  gemm(args.x, Transpose::no, args.weight, Transpose::yes, args.y, false, stream,
       args.bias ? args.bias.to(args.y.dtype()) : args.bias);
}

void linear_backward(const LinearBackward& args, Stream stream) {
  // Logits asked for in f32 send their gradient in f32; the products want one dtype.
  const Tensor dy = args.dy.to(args.weight.dtype());
  if (args.dx) gemm(dy, Transpose::no, args.weight, Transpose::no, args.dx, args.add_dx, stream);
  if (args.dweight) gemm(dy, Transpose::yes, args.x, Transpose::no, args.dweight, args.add_dweight, stream);
  if (args.dbias) sum_columns(args.dy, args.dbias, stream);
}

}  // namespace ssm::cuda
