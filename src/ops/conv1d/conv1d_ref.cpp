// The definition of conv1d in plain loops, f32 and f64. Equations: conv1d.h, README.md.
#include <cmath>

#include "ops/conv1d/conv1d.h"

namespace ssm::ref {
namespace {

template <class T>
ConvInputs<T> inputs_of(const Tensor& x, const Tensor& state, const Seqs& seqs, int64_t w) {
  return {x.matrix<T>(), state.data<T>(), seqs, w - 1};
}

// v of (2) at position p of sequence s, channel c.
template <class T>
T preactivation(const ConvInputs<T>& inputs, const Matrix<T>& weight, const T* bias, int64_t s, int64_t p, int64_t c) {
  T v = bias ? bias[c] : T(0);
  for (int64_t k = 0; k < weight.columns; ++k) {
    const T* row = inputs.row(s, p + k);
    if (row) v += weight[c][k] * row[c];
  }
  return v;
}

template <class T>
void forward(const Conv1dForward& args) {
  const auto weight = args.weight.matrix<T>(), y = args.y.matrix<T>();
  const T* bias = args.bias.data<T>();
  const int64_t w = weight.columns, e = y.columns;
  const auto inputs = inputs_of<T>(args.x, args.state, args.seqs, w);
  const auto new_rows = inputs_of<T>(args.x, args.new_state, args.seqs, w);
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    const int64_t begin = args.seqs.offsets[static_cast<size_t>(s)], length = args.seqs.length(s);
    for (int64_t p = 0; p < length; ++p) {
      for (int64_t c = 0; c < e; ++c) {
        const T v = preactivation(inputs, weight, bias, s, p, c);
        y[begin + p][c] = args.activation == Activation::silu ? v / (1 + std::exp(-v)) : v;  // (3)
      }
    }
    if (!args.new_state) continue;
    // (4). Upwards, so that a row is read before it is written when the state advances in place.
    for (int64_t j = 0; j < w - 1; ++j) {
      const T* from = inputs.row(s, length + j);
      T* to = new_rows.row(s, j);
      for (int64_t c = 0; c < e; ++c) to[c] = from[c];
    }
  }
}

template <class T>
void backward(const Conv1dBackward& args) {
  const auto weight = args.weight.matrix<T>(), dy = args.dy.matrix<T>(), dweight = args.dweight.matrix<T>();
  const T* bias = args.bias.data<T>();
  T* dbias = args.dbias.data<T>();
  const int64_t w = weight.columns, e = dy.columns;
  const auto inputs = inputs_of<T>(args.x, args.state, args.seqs, w);
  const auto dinputs = inputs_of<T>(args.dx, args.dstate, args.seqs, w);
  const auto dnew_rows = inputs_of<T>(args.dx, args.dnew_state, args.seqs, w);
  if (dweight) args.dweight.fill_zero();
  if (dbias) args.dbias.fill_zero();
  if (args.dstate) args.dnew_state ? args.dstate.copy_from(args.dnew_state) : args.dstate.fill_zero();  // other slots
  const Tensor slope = Tensor::empty({args.seqs.longest, e}, args.dy.dtype());
  const auto g = slope.matrix<T>();
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    const int64_t begin = args.seqs.offsets[static_cast<size_t>(s)], length = args.seqs.length(s);
    for (int64_t p = 0; p < length; ++p) {
      for (int64_t c = 0; c < e; ++c) {
        g[p][c] = dy[begin + p][c];
        if (args.activation == Activation::silu) {  // (5)
          const T v = preactivation(inputs, weight, bias, s, p, c), sigmoid = 1 / (1 + std::exp(-v));
          g[p][c] *= sigmoid * (1 + v * (1 - sigmoid));
        }
        if (dbias) dbias[c] += g[p][c];  // (7)
        for (int64_t k = 0; k < w && dweight; ++k) {
          const T* row = inputs.row(s, p + k);
          if (row) dweight[c][k] += g[p][c] * row[c];  // (6)
        }
      }
    }
    // (8), for the rows of X whose gradient somebody wants
    for (int64_t i = 0; i < length + w - 1; ++i) {
      if (i >= w - 1 ? !args.dx : !args.dstate) continue;
      T* to = dinputs.row(s, i);
      for (int64_t c = 0; c < e; ++c) {
        T sum = i >= length && args.dnew_state ? dnew_rows.row(s, i - length)[c] : T(0);
        for (int64_t k = 0; k < w; ++k)
          if (0 <= i - k && i - k < length) sum += weight[c][k] * g[i - k][c];
        to[c] = sum;
      }
    }
  }
}

}  // namespace

void conv1d_forward(const Conv1dForward& args, Threads&) {
  args.x.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void conv1d_backward(const Conv1dBackward& args, Threads&) {
  args.x.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
