// From (1) to (2): zero-order hold as the exponential of one augmented matrix (4), which needs no inverse of A, and the
// generalised bilinear rule (5).
#include <Eigen/LU>
#include <cmath>
#include <limits>
#include <unsupported/Eigen/MatrixFunctions>

#include "core/error.h"
#include "lti/linear_system.h"
#include "lti/matrix.h"

namespace ssm {
namespace {

// [A B; 0 0] dt, whose exponential is [A_bar B_bar; 0 I].
Matrix held(const LinearSystem& system, double dt) {
  const int64_t n = system.n, size = n + system.inputs;
  Matrix augmented = Matrix::Zero(size, size);
  augmented.topLeftCorner(n, n) = dt * as_matrix(system.A, n, n);
  augmented.topRightCorner(n, system.inputs) = dt * as_matrix(system.B, n, system.inputs);
  return augmented.exp();
}

}  // namespace

LinearSystem discretize(const LinearSystem& continuous, double dt, const Discretization& method) {
  const int64_t n = continuous.n, inputs = continuous.inputs;
  const auto A = as_matrix(continuous.A, n, n);
  const auto B = as_matrix(continuous.B, n, inputs);
  const std::string where = text(method.name, " with dt ", dt);
  LinearSystem result = continuous;
  require((dt * A).allFinite() && (dt * B).allFinite(), where, ": dt A or dt B is past the range of a double");
  if (method.exact) {
    const Matrix both = held(continuous, dt);
    result.A = as_vector(both.topLeftCorner(n, n));
    result.B = as_vector(both.topRightCorner(n, inputs));
  } else if (method.alpha == 0) {
    result.A = as_vector(Matrix::Identity(n, n) + dt * A);
    result.B = as_vector(dt * B);
  } else {
    const Matrix left = Matrix::Identity(n, n) - method.alpha * dt * A;
    const Eigen::PartialPivLU<Matrix> solver(left);
    const double smallest = solver.matrixLU().diagonal().cwiseAbs().minCoeff();  // rcond() divides by it
    require(smallest > 0 && solver.rcond() >= std::numeric_limits<double>::epsilon(), where, ": I - ", method.alpha,
            " dt A is singular, since A has an eigenvalue near ", 1 / (method.alpha * dt),
            "; take another dt, zoh or euler");
    result.A = as_vector(solver.solve(Matrix::Identity(n, n) + (1 - method.alpha) * dt * A));
    result.B = as_vector(solver.solve(dt * B));
  }
  require(as_matrix(result.A, n, n).allFinite() && as_matrix(result.B, n, inputs).allFinite(), where,
          ": the discrete A or B is past the range of a double; take a smaller dt");
  return result;
}

}  // namespace ssm
