// A state's signal by (18), and the state itself: by zero-order hold where time runs evenly, by the bilinear rule where
// it is scaled.
#include "lti/memory.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "lti/linear_system.h"

namespace ssm {
namespace {

constexpr int64_t kBlock = 4096;  // samples between two calls of `between`

double scale(int64_t i) { return std::sqrt(2.0 * static_cast<double>(i) + 1); }

// Units of the system's time a sample lasts: a window of legt and fout is two units, legs fades by e in one.
double step_of(const Memory& memory) { return (memory.measure == Measure::legs ? 1 : 2) / memory.window; }

// LegS with time scaled. In the logarithm of time (20) has constant coefficients, and the step from k to k + 1 samples
// is log(1 + 1/k). Its bilinear rule (5) is solved in O(n) because A is triangular and its rows are the same numbers
// but for a factor: (A x)_i = -s_i sum_(k<i) s_k x_k - (i + 1) x_i.
std::vector<double> remember_all(int64_t n, std::span<const double> signal, const std::function<void()>& between) {
  std::vector<double> x(static_cast<size_t>(n));
  x[0] = signal.empty() ? 0 : signal[0];  // one constant sample is its own mean
  for (size_t sample = 1; sample < signal.size(); ++sample) {
    if (static_cast<int64_t>(sample) % kBlock == 0) between();
    const double step = std::log1p(1 / static_cast<double>(sample)), half = step / 2;
    double before = 0, after = 0;  // sums of s_k x_k
    for (int64_t i = 0; i < n; ++i) {
      double& state = x[static_cast<size_t>(i)];
      const double rate = half * static_cast<double>(i + 1), s = scale(i);
      const double next = ((1 - rate) * state + s * (step * signal[sample] - half * (before + after))) / (1 + rate);
      before += s * state;
      after += s * next;
      state = next;
    }
  }
  return x;
}

// Legendre polynomials at z, each with its scale; or the Fourier series at the share z of the window.
void basis_at(Measure measure, double z, std::vector<double>& values) {
  const auto n = static_cast<int64_t>(values.size());
  if (measure == Measure::fout) {
    for (int64_t i = 0; i < n; ++i) {
      const double angle = 2 * M_PI * static_cast<double>(i / 2) * z;
      values[static_cast<size_t>(i)] = i == 0 ? 1 : std::sqrt(2.0) * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
    }
    return;
  }
  double last = 0, polynomial = 1;
  for (int64_t i = 0; i < n; ++i) {
    values[static_cast<size_t>(i)] = scale(i) * polynomial;
    const auto degree = static_cast<double>(i);
    const double next = ((2 * degree + 1) * z * polynomial - degree * last) / (degree + 1);
    last = polynomial;
    polynomial = next;
  }
}

}  // namespace

std::vector<double> remember(const Memory& memory, std::span<const double> signal,
                             const std::function<void()>& between) {
  if (memory.window == 0) {
    DCHECK(memory.measure == Measure::legs);
    return remember_all(memory.n, signal, between);
  }
  const Hippo matrices = hippo(memory.measure, memory.n);
  const LinearSystem continuous{.n = memory.n, .outputs = 0, .A = matrices.A, .B = matrices.B};
  const LinearSystem discrete = discretize(continuous, step_of(memory), Discretization::zero_order_hold());
  std::vector<double> state(static_cast<size_t>(memory.n));
  for (size_t begin = 0; begin < signal.size(); begin += kBlock) {
    between();
    run_recurrence(discrete, signal.subspan(begin, std::min<size_t>(kBlock, signal.size() - begin)), state);
  }
  return state;
}

std::vector<double> recall(const Memory& memory, const std::vector<double>& state, int64_t samples, int64_t count) {
  std::vector<double> past(static_cast<size_t>(count)), basis(static_cast<size_t>(memory.n));
  for (int64_t age = 0; age < count; ++age) {
    const double ago = static_cast<double>(age) + 0.5;  // samples
    double z = 0;
    if (memory.window == 0)
      z = 1 - 2 * ago / static_cast<double>(samples);
    else if (memory.measure == Measure::legs)
      z = 2 * std::exp(-ago / memory.window) - 1;
    else
      z = memory.measure == Measure::legt ? 1 - 2 * ago / memory.window : ago / memory.window;
    basis_at(memory.measure, z, basis);
    double sum = 0;
    for (size_t i = 0; i < basis.size(); ++i) sum += state[i] * basis[i];
    past[static_cast<size_t>(count - 1 - age)] = sum;
  }
  return past;
}

}  // namespace ssm
