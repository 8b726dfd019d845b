// C = A B (+ C) on row-major matrices: the only place of the house that multiplies large matrices.
#pragma once

#include "core/cuda.h"
#include "core/tensor.h"
#include "core/threads.h"

namespace ssm {

enum class Transpose { no, yes };

namespace cpu {

// c (m, n) = op(a) op(b), or += with accumulate; f32, unit inner strides, any row strides. op(a) is (m, k), op(b) is
// (k, n). Tiles are computed by single-threaded BLAS calls on our own threads: one pool in the process, and the
// same bits for any number of threads (docs/decisions/gemm.md).
void gemm(const Matrix<float>& a, Transpose transpose_a, const Matrix<float>& b, Transpose transpose_b,
          const Matrix<float>& c, bool accumulate, Threads& threads);

}  // namespace cpu

namespace cuda {

// The same through cuBLASLt, which is opened at the first call; Error when it is not there. a and b share f32, bf16 or
// f16; c has their dtype or f32; sums are f32. `bias` (n), absent or of c's dtype, is added to each row, `scale`
// multiplies the product. Row strides and the alignment of rows are free; rows on 16 bytes are the fast case.
//
// The algorithm is chosen by measuring at the first call of a kind (sizes, strides, dtypes, alignment), above 256 rows
// among those that give the same bits as the library's own first choice; a recording takes that first choice if
// nothing was measured. What holds for the bits: README.md.
void gemm(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, const Tensor& c,
          bool accumulate, Stream stream, const Tensor& bias = {}, float scale = 1);

// c = a b^T (+ bias) with a (m, k) in f32 and b (n, k) in bf16 or f16: a as a sum of two numbers of b's type, 16 bits
// of it in bf16, for twice the work. c and bias are f32.
void gemm_wide(const Tensor& a, const Tensor& b, const Tensor& c, Stream stream, const Tensor& bias = {});

// f32 operands rounded to TF32 (10 bits) on tensor cores: about 8 times faster. Off until asked for.
void allow_tf32(bool allowed);

}  // namespace cuda

namespace ref {

// The definition, in plain loops.
template <class T>
void gemm(const Matrix<T>& a, Transpose transpose_a, const Matrix<T>& b, Transpose transpose_b, const Matrix<T>& c,
          bool accumulate) {
  const int64_t terms = transpose_a == Transpose::yes ? a.rows : a.columns;
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) {
      T sum = accumulate ? c[i][j] : T(0);
      for (int64_t k = 0; k < terms; ++k)
        sum +=
            (transpose_a == Transpose::yes ? a[k][i] : a[i][k]) * (transpose_b == Transpose::yes ? b[j][k] : b[k][j]);
      c[i][j] = sum;
    }
  }
}

}  // namespace ref
}  // namespace ssm
