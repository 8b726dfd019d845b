// C = A B (+ C) on row-major matrices: the only place of the house that multiplies large matrices on the CPU.
#pragma once

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
