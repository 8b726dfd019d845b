// The definition of lstm in plain loops, f32 and f64. Equations: lstm.h, README.md.
#include <cmath>
#include <vector>

#include "ops/lstm/lstm.h"

namespace ssm::ref {
namespace {

template <class T>
T sigmoid(T a) {
  return 1 / (1 + std::exp(-a));
}

template <class T>
void forward(const LstmForward& args) {
  const auto x = args.x.matrix<T>(), weight = args.weight.matrix<T>(), y = args.y.matrix<T>(),
             all_gates = args.gates.matrix<T>(), cells = args.cells.matrix<T>(), h = args.h.matrix<T>(),
             c = args.c.matrix<T>();
  const T* bias = args.bias.data<T>();
  const int64_t e = y.columns;
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    const int64_t slot = args.seqs.slots[static_cast<size_t>(s)];
    std::vector<T> last_h(static_cast<size_t>(e), T(0)), last_c = last_h, a(static_cast<size_t>(4 * e));
    if (h) last_h.assign(h[slot], h[slot] + e), last_c.assign(c[slot], c[slot] + e);
    for (int64_t row = 0; row < args.seqs.length(s); ++row) {
      const int64_t t = args.seqs.offsets[static_cast<size_t>(s)] + row;
      for (int64_t r = 0; r < 4 * e; ++r) {  // (1)
        T sum = x[t][r] + (bias ? bias[r] : T(0));
        for (int64_t k = 0; k < e; ++k) sum += weight[r][k] * last_h[static_cast<size_t>(k)];
        a[static_cast<size_t>(r)] = sum;
      }
      for (int64_t k = 0; k < e; ++k) {
        const auto at = static_cast<size_t>(k), width = static_cast<size_t>(e);
        const T i = sigmoid(a[at]), f = sigmoid(a[width + at]), g = std::tanh(a[2 * width + at]),
                o = sigmoid(a[3 * width + at]);  // (2)
        last_c[at] = f * last_c[at] + i * g;     // (3)
        y[t][k] = o * std::tanh(last_c[at]);     // (4)
        if (!all_gates) continue;
        all_gates[t][k] = i, all_gates[t][e + k] = f, all_gates[t][2 * e + k] = g, all_gates[t][3 * e + k] = o;
        cells[t][k] = last_c[at];
      }
      last_h.assign(y[t], y[t] + e);
    }
    if (h) std::copy(last_h.begin(), last_h.end(), h[slot]), std::copy(last_c.begin(), last_c.end(), c[slot]);
  }
}

template <class T>
void backward(const LstmBackward& args) {
  const auto weight = args.weight.matrix<T>(), gates = args.gates.matrix<T>(), cells = args.cells.matrix<T>(),
             y = args.y.matrix<T>(), h = args.h.matrix<T>(), c = args.c.matrix<T>(), dy = args.dy.matrix<T>(),
             dnew_h = args.dnew_h.matrix<T>(), dnew_c = args.dnew_c.matrix<T>(), dx = args.dx.matrix<T>(),
             dweight = args.dweight.matrix<T>(), first_dh = args.dh.matrix<T>(), first_dc = args.dc.matrix<T>();
  T* dbias = args.dbias.data<T>();
  const int64_t e = y.columns;
  if (dweight) args.dweight.fill_zero();
  if (dbias) args.dbias.fill_zero();
  if (first_dh) dnew_h ? args.dh.copy_from(args.dnew_h) : args.dh.fill_zero();  // of slots that nobody advanced
  if (first_dc) dnew_c ? args.dc.copy_from(args.dnew_c) : args.dc.fill_zero();
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    const int64_t slot = args.seqs.slots[static_cast<size_t>(s)];
    std::vector<T> dh(static_cast<size_t>(e), T(0)), dc = dh;
    if (dnew_h) dh.assign(dnew_h[slot], dnew_h[slot] + e);
    if (dnew_c) dc.assign(dnew_c[slot], dnew_c[slot] + e);
    for (int64_t row = args.seqs.length(s); row-- > 0;) {
      const int64_t t = args.seqs.offsets[static_cast<size_t>(s)] + row;
      const T* before_h = row > 0 ? y[t - 1] : h ? h[slot] : nullptr;
      const T* before_c = row > 0 ? cells[t - 1] : c ? c[slot] : nullptr;
      for (int64_t k = 0; k < e; ++k) {
        const auto at = static_cast<size_t>(k);
        const T i = gates[t][k], f = gates[t][e + k], g = gates[t][2 * e + k], o = gates[t][3 * e + k];
        const T squashed = std::tanh(cells[t][k]), slope = dh[at] + dy[t][k];
        const T dcell = dc[at] + slope * o * (1 - squashed * squashed);  // (5)
        dx[t][k] = dcell * g * i * (1 - i);                              // (6)
        dx[t][e + k] = before_c ? dcell * before_c[k] * f * (1 - f) : T(0);
        dx[t][2 * e + k] = dcell * i * (1 - g * g);
        dx[t][3 * e + k] = slope * squashed * o * (1 - o);
        dc[at] = dcell * f;
        dh[at] = 0;
      }
      for (int64_t r = 0; r < 4 * e; ++r) {
        for (int64_t k = 0; k < e; ++k) {
          dh[static_cast<size_t>(k)] += weight[r][k] * dx[t][r];             // (7)
          if (dweight && before_h) dweight[r][k] += dx[t][r] * before_h[k];  // (8)
        }
        if (dbias) dbias[r] += dx[t][r];
      }
    }
    if (first_dh) std::copy(dh.begin(), dh.end(), first_dh[slot]);
    if (first_dc) std::copy(dc.begin(), dc.end(), first_dc[slot]);
  }
}

}  // namespace

void lstm_forward(const LstmForward& args, Threads&) {
  args.x.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void lstm_backward(const LstmBackward& args, Threads&) {
  args.y.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
