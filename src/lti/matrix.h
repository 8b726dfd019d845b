// Row-major vectors seen as Eigen's matrices. For .cpp files of this room: its other headers name no type of Eigen.
#pragma once

#include <Eigen/Core>
#include <vector>

namespace ssm {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline Eigen::Map<const Matrix> as_matrix(const std::vector<double>& values, int64_t rows, int64_t columns) {
  return {values.data(), rows, columns};
}

inline std::vector<double> as_vector(const Matrix& matrix) { return {matrix.data(), matrix.data() + matrix.size()}; }

}  // namespace ssm
