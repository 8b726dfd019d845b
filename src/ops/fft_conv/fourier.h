// Fourier transforms of many rows at once on a GPU, through cuFFT. The library is opened when first used, so the
// program starts without it.
#pragma once

#include "core/cuda.h"
#include "core/tensor.h"

namespace ssm::cuda {

// In place, `rows` of them: size real numbers and room for 2 more become size / 2 + 1 complex ones, and back without
// the factor 1 / size. f32 or f64; size is even. `data` is (rows, size + 2).
void fourier_transform(const Tensor& data, Stream stream);
void inverse_fourier_transform(const Tensor& data, Stream stream);

// The next size from `least` on that is 4, 5, 6 or 7 times a power of two, at least 8: few sizes, so few plans.
int64_t fourier_size(int64_t least);

}  // namespace ssm::cuda
