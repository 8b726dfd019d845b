// Three ways to run a discrete system: a recurrence (2), a convolution (6), an associative scan (9). All begin with the
// same B_bar u; the recurrence alone carries a state from call to call.
#include <algorithm>
#include <complex>
#include <unsupported/Eigen/FFT>

#include "core/error.h"
#include "lti/linear_system.h"
#include "lti/matrix.h"

namespace ssm {
namespace {

int64_t length_of(const LinearSystem& system, std::span<const double> u) {
  DCHECK(static_cast<int64_t>(u.size()) % system.inputs == 0);
  return static_cast<int64_t>(u.size()) / system.inputs;
}

Eigen::Map<const Matrix> signal_of(const LinearSystem& system, std::span<const double> u) {
  return {u.data(), length_of(system, u), system.inputs};
}

// y = C x + D u for all tokens: states (t, n).
std::vector<double> outputs_of(const LinearSystem& system, const Matrix& states, std::span<const double> u) {
  return as_vector(states * as_matrix(system.C, system.outputs, system.n).transpose() +
                   signal_of(system, u) * as_matrix(system.D, system.outputs, system.inputs).transpose());
}

}  // namespace

std::vector<double> run_recurrence(const LinearSystem& discrete, std::span<const double> u,
                                   std::vector<double>& state) {
  const int64_t n = discrete.n, t = length_of(discrete, u);
  DCHECK(static_cast<int64_t>(state.size()) == n);
  const auto A = as_matrix(discrete.A, n, n), C = as_matrix(discrete.C, discrete.outputs, n);
  Matrix driven = signal_of(discrete, u) * as_matrix(discrete.B, n, discrete.inputs).transpose();  // (t, n)
  Matrix y = signal_of(discrete, u) * as_matrix(discrete.D, discrete.outputs, discrete.inputs).transpose();
  Eigen::VectorXd x = Eigen::Map<const Eigen::VectorXd>(state.data(), n), next(n);
  for (int64_t k = 0; k < t; ++k) {
    next.noalias() = A * x;
    next += driven.row(k).transpose();
    x.swap(next);
    y.row(k).noalias() += (C * x).transpose();
  }
  std::copy(x.begin(), x.end(), state.begin());
  return as_vector(y);
}

std::vector<double> convolution_kernel(const LinearSystem& discrete, int64_t t) {
  const int64_t n = discrete.n, size = discrete.outputs * discrete.inputs;
  const auto A = as_matrix(discrete.A, n, n), C = as_matrix(discrete.C, discrete.outputs, n);
  Matrix power = as_matrix(discrete.B, n, discrete.inputs), next(n, discrete.inputs);  // A_bar^l B_bar
  std::vector<double> K(static_cast<size_t>(t * size));
  for (int64_t l = 0; l < t; ++l) {
    Eigen::Map<Matrix>(K.data() + l * size, discrete.outputs, discrete.inputs).noalias() = C * power;
    next.noalias() = A * power;
    power.swap(next);
  }
  return K;
}

std::vector<double> run_convolution(const LinearSystem& discrete, std::span<const double> u) {
  const int64_t t = length_of(discrete, u), inputs = discrete.inputs, outputs = discrete.outputs;
  const std::vector<double> K = convolution_kernel(discrete, t);
  // Long enough that no product wraps around; the transform takes no length below 2.
  int64_t length = 2;
  while (length < 2 * t) length *= 2;
  using Spectrum = std::vector<std::complex<double>>;
  Eigen::FFT<double> fft;
  const auto spectrum = [&](const double* first, int64_t stride) {
    std::vector<double> padded(static_cast<size_t>(length), 0.0);
    for (int64_t k = 0; k < t; ++k) padded[static_cast<size_t>(k)] = first[k * stride];
    Spectrum result;
    fft.fwd(result, padded);
    return result;
  };
  std::vector<Spectrum> of_inputs;
  for (int64_t i = 0; i < inputs; ++i) of_inputs.push_back(spectrum(u.data() + i, inputs));
  std::vector<double> y = as_vector(signal_of(discrete, u) * as_matrix(discrete.D, outputs, inputs).transpose());
  for (int64_t o = 0; o < outputs; ++o) {
    Spectrum sum(static_cast<size_t>(length));
    for (int64_t i = 0; i < inputs; ++i) {
      const Spectrum of_kernel = spectrum(K.data() + o * inputs + i, outputs * inputs);
      const Spectrum& of_input = of_inputs[static_cast<size_t>(i)];
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += of_kernel[k] * of_input[k];
    }
    std::vector<double> convolved;
    fft.inv(convolved, sum);
    for (int64_t k = 0; k < t; ++k) y[static_cast<size_t>(k * outputs + o)] += convolved[static_cast<size_t>(k)];
  }
  return y;
}

// In place over x, which begins as B_bar u. Before the round of `stride` going up, x at every index that is one below
// a multiple of it holds the sum (8) of the `stride` tokens up to its own; going down, blocks of half the size take in
// the block before them. The operator's first part is the same for all blocks of a round: A_bar^stride, made by
// squaring.
std::vector<double> run_scan(const LinearSystem& discrete, std::span<const double> u) {
  const int64_t n = discrete.n, t = length_of(discrete, u);
  Matrix x = signal_of(discrete, u) * as_matrix(discrete.B, n, discrete.inputs).transpose();  // (t, n)
  // x_last += A^stride x_(last - stride) for last = first, first + 2 stride, ...: rows of one product.
  using Rows = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;
  const auto round = [&](const Matrix& power, int64_t first, int64_t stride) {
    if (first >= t) return;
    const int64_t count = (t - 1 - first) / (2 * stride) + 1;
    Rows later(x.data() + first * n, count, n, Eigen::OuterStride<>(2 * stride * n));
    const Rows earlier(x.data() + (first - stride) * n, count, n, Eigen::OuterStride<>(2 * stride * n));
    later.noalias() += earlier * power.transpose();
  };
  std::vector<Matrix> powers;  // A_bar, A_bar^2, A_bar^4, ...
  int64_t stride = 1;
  for (; stride < t; stride *= 2) {
    powers.push_back(powers.empty() ? Matrix(as_matrix(discrete.A, n, n)) : Matrix(powers.back() * powers.back()));
    round(powers.back(), 2 * stride - 1, stride);
  }
  while (stride > 1) {
    stride /= 2;
    round(powers.back(), 3 * stride - 1, stride);
    powers.pop_back();
  }
  return outputs_of(discrete, x, u);
}

}  // namespace ssm
