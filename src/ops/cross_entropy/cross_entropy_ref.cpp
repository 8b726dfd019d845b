// The definition of cross_entropy in plain loops, f32 and f64. Equations: README.md.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/cross_entropy/cross_entropy.h"

namespace ssm::ref {
namespace {

// (2) of one row, computed as (4).
template <class T>
T row_loss(const T* logits, int64_t vocab, int64_t target) {
  const T shift = *std::max_element(logits, logits + vocab);
  T sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(logits[v] - shift);
  return std::log(sum) + (shift - logits[target]);
}

// (5) of one row times `scale`; dlogits may be logits.
template <class T>
void row_slopes(const T* logits, int64_t vocab, int64_t target, T scale, T* dlogits) {
  const T shift = *std::max_element(logits, logits + vocab);
  T sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += dlogits[v] = std::exp(logits[v] - shift);
  for (int64_t v = 0; v < vocab; ++v) dlogits[v] *= scale / sum;
  dlogits[target] -= scale;
}

template <class T>
void mean(const Tensor& losses, int64_t counted, const Tensor& loss) {  // (3)
  double sum = 0;
  for (const T one : losses.span<T>()) sum += static_cast<double>(one);
  *loss.data<T>() = static_cast<T>(counted ? sum / static_cast<double>(counted) : 0);
}

// The weight of one token in (3).
template <class T>
T share(const Targets& targets) {
  return targets.counted ? 1 / static_cast<T>(targets.counted) : T(0);
}

template <class T>
void forward(const CrossEntropyForward& args) {
  const auto logits = args.logits.matrix<T>();
  for (int64_t t = 0; t < logits.rows; ++t) {
    const int64_t target = args.targets.ids.data<int64_t>()[t];
    args.losses.data<T>()[t] = target == args.targets.ignore ? T(0) : row_loss(logits[t], logits.columns, target);
  }
  mean<T>(args.losses, args.targets.counted, args.loss);
}

template <class T>
void backward(const CrossEntropyBackward& args) {
  const auto logits = args.logits.matrix<T>(), dlogits = args.dlogits.matrix<T>();
  const T scale = share<T>(args.targets) * args.dloss.item<T>();
  args.dlogits.fill_zero();
  for (int64_t t = 0; t < logits.rows; ++t) {
    const int64_t target = args.targets.ids.data<int64_t>()[t];
    if (target != args.targets.ignore) row_slopes(logits[t], logits.columns, target, scale, dlogits[t]);
  }
}

template <class T>
void linear_forward(const LinearCrossEntropyForward& args) {
  const auto x = args.x.matrix<T>(), weight = args.weight.matrix<T>(), dx = args.dx.matrix<T>(),
             dweight = args.dweight.matrix<T>();
  const T scale = share<T>(args.targets);
  if (dx) args.dx.fill_zero();
  if (dweight) args.dweight.fill_zero();
  std::vector<T> logits(static_cast<size_t>(weight.rows));
  for (int64_t t = 0; t < x.rows; ++t) {
    T& loss = args.losses.data<T>()[t];
    const int64_t target = args.targets.ids.data<int64_t>()[t];
    loss = 0;
    if (target == args.targets.ignore) continue;
    for (int64_t v = 0; v < weight.rows; ++v) {
      T sum = 0;
      for (int64_t c = 0; c < x.columns; ++c) sum += x[t][c] * weight[v][c];  // (1)
      logits[static_cast<size_t>(v)] = sum;
    }
    loss = row_loss(logits.data(), weight.rows, target);
    if (!dx && !dweight) continue;
    row_slopes(logits.data(), weight.rows, target, scale, logits.data());
    for (int64_t v = 0; v < weight.rows; ++v) {
      const T slope = logits[static_cast<size_t>(v)];
      for (int64_t c = 0; c < x.columns && dx; ++c) dx[t][c] += slope * weight[v][c];       // (6)
      for (int64_t c = 0; c < x.columns && dweight; ++c) dweight[v][c] += slope * x[t][c];  // (7)
    }
  }
  mean<T>(args.losses, args.targets.counted, args.loss);
}

template <class T>
void scale_into(const Tensor& from, T scale, const Tensor& to, bool add) {
  const auto source = from.matrix<T>(), target = to.matrix<T>();
  for (int64_t row = 0; row < target.rows; ++row)
    for (int64_t c = 0; c < target.columns; ++c)
      target[row][c] = scale * source[row][c] + (add ? target[row][c] : T(0));
}

template <class T>
void linear_backward(const LinearCrossEntropyBackward& args) {
  const T scale = args.dloss.item<T>();
  if (args.dx) scale_into(args.mean_dx, scale, args.dx, args.add_dx);
  if (args.dweight) scale_into(args.mean_dweight, scale, args.dweight, args.add_dweight);
}

}  // namespace

void cross_entropy_forward(const CrossEntropyForward& args, Threads&) {
  args.logits.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void cross_entropy_backward(const CrossEntropyBackward& args, Threads&) {
  args.logits.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

void linear_cross_entropy_forward(const LinearCrossEntropyForward& args, Threads&) {
  args.x.dtype() == DType::f64 ? linear_forward<double>(args) : linear_forward<float>(args);
}

void linear_cross_entropy_backward(const LinearCrossEntropyBackward& args, Threads&) {
  args.dloss.dtype() == DType::f64 ? linear_backward<double>(args) : linear_backward<float>(args);
}

}  // namespace ssm::ref
