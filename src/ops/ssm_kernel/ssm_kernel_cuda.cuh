// The two ways of ssm_kernel on a GPU: vandermonde_cuda.cu for diagonal systems, cauchy_cuda.cu for those with a
// rank-one part.
#pragma once

#include "core/cuda_kernel.cuh"
#include "ops/complex.cuh"
#include "ops/ssm_kernel/ssm_kernel.h"

namespace ssm::cuda {

void vandermonde_forward(const SsmKernelForward&, Stream);
void vandermonde_backward(const SsmKernelBackward&, Stream);
void cauchy_forward(const SsmKernelForward&, Stream);
void cauchy_backward(const SsmKernelBackward&, Stream);

// A (parts, n, e) tensor, read and written in double.
struct ModeTable {
  float* data;
  int64_t parts, n, e;

  explicit ModeTable(const Tensor& tensor)
      : data(elements<float>(tensor)),
        parts(tensor ? tensor.size(0) : 0),
        n(tensor ? tensor.size(1) : 0),
        e(tensor ? tensor.size(2) : 0) {}
  __device__ Complex<double> read(int64_t k, int64_t channel) const {
    return {data[k * e + channel], parts == 2 ? data[(n + k) * e + channel] : 0.0};
  }
  __device__ void write(Complex<double> value, int64_t k, int64_t channel) const {
    data[k * e + channel] = static_cast<float>(value.re);
    if (parts == 2) data[(n + k) * e + channel] = static_cast<float>(value.im);
  }
};

}  // namespace ssm::cuda
