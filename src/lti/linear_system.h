// Continuous linear systems with several inputs and outputs, in double:
//   x'(t) = A x(t) + B u(t),   y(t) = C x(t) + D u(t)                                   (1)
// and what sampling makes of them, of the same type:
//   x_k = A_bar x_(k-1) + B_bar u_k,   y_k = C x_k + D u_k                              (2)
// Numbers of equations are those of README.md. Matrices are row-major vectors, so that no reader of this header needs
// the library behind it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ssm {

struct LinearSystem {
  int64_t n = 0, inputs = 1, outputs = 1;
  std::vector<double> A;  // (n, n)
  std::vector<double> B;  // (n, inputs)
  std::vector<double> C;  // (outputs, n)
  std::vector<double> D;  // (outputs, inputs)
};

// How time is cut into steps. Zero-order hold takes the input as constant over a step and is exact then; the others
// are the generalised bilinear rule (5) with its alpha.
struct Discretization {
  std::string name;    // as the user knows it, for errors
  bool exact = false;  // zero-order hold
  double alpha = 0;    // 0 Euler, 1/2 bilinear (Tustin, trapezoid), 1 backward Euler

  static Discretization zero_order_hold() { return {.name = "zoh", .exact = true}; }
  static Discretization bilinear() { return {.name = "bilinear", .alpha = 0.5}; }
  static Discretization euler() { return {.name = "euler", .alpha = 0}; }
  static Discretization backward_euler() { return {.name = "backward-euler", .alpha = 1}; }
  static Discretization generalized_bilinear(double alpha) { return {.name = "generalized-bilinear", .alpha = alpha}; }
};

// A_bar and B_bar by (4) or (5); C and D stay what they are. Throws Error where I - alpha dt A is singular or numbers
// grow past the range of a double.
LinearSystem discretize(const LinearSystem& continuous, double dt, const Discretization& method);

// The three views of a discrete system: u (t, inputs) to y (t, outputs), equal but for rounding.

// Step by step with (2): t n (n + inputs + outputs) multiplications. `state` (n) is advanced.
std::vector<double> run_recurrence(const LinearSystem& discrete, std::span<const double> u, std::vector<double>& state);
// As a convolution with (6), from a state of zero, by fast Fourier transforms.
std::vector<double> run_convolution(const LinearSystem& discrete, std::span<const double> u);
// As an associative scan with (9), from a state of zero: all t states are held.
std::vector<double> run_scan(const LinearSystem& discrete, std::span<const double> u);

// K_l = C A_bar^l B_bar for l < t, as (t, outputs, inputs); D is not in it.
std::vector<double> convolution_kernel(const LinearSystem& discrete, int64_t t);

}  // namespace ssm
