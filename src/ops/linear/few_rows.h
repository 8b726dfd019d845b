// y = x W^T + b for few rows on a GPU (few_rows_cuda.cu).
#pragma once

#include "core/cuda.h"

namespace ssm::cuda {

// Whether few_rows takes this product, and was measured to be faster than gemm at it.
bool few_rows_win(const Tensor& x, const Tensor& weight);

// x (t, in), weight (out, in), bias (out) or absent, y (t, out). x and weight share a dtype; y has it or f32, the bias
// is f32 or as y.
void few_rows(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y, Stream stream);

}  // namespace ssm::cuda
