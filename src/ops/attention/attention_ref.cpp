// The definition of attention in plain loops, f32 and f64. Equations: attention.h, README.md.
#include <algorithm>
#include <cmath>

#include "ops/attention/attention.h"

namespace ssm::ref {
namespace {

// P_ij of (2) and (3) for all keys of row i.
template <class T>
std::vector<T> weights(const AttentionSizes& sizes, const Matrix<T>& q, const Matrix<T>& keys, int64_t head,
                       int64_t i) {
  const int64_t last = keys.rows - q.rows + i;
  std::vector<T> P;
  for (int64_t j = 0; j <= last; ++j) {
    T dot = 0;
    for (int64_t c = 0; c < sizes.p; ++c) dot += q[i][c] * keys[j][c];
    P.push_back(T(sizes.scale) * dot + T(sizes.slopes[static_cast<size_t>(head)]) * static_cast<T>(j - last));
  }
  const T largest = *std::max_element(P.begin(), P.end());
  T sum = 0;
  for (T& score : P) sum += score = std::exp(score - largest);
  for (T& weight : P) weight /= sum;
  return P;
}

template <class T>
void forward(const AttentionForward& args) {
  const AttentionSizes& sizes = args.sizes;
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    for (int64_t head = 0; head < sizes.heads; ++head) {
      const int64_t group = sizes.group_of(head);
      const auto q = head_of<T>(args.q, sizes, args.seqs, s, head),
                 out = head_of<T>(args.out, sizes, args.seqs, s, head);
      const auto keys = keys_of<T>(args.k, sizes, args.seqs, s, group),
                 values = keys_of<T>(args.v, sizes, args.seqs, s, group);
      for (int64_t i = 0; i < q.rows; ++i) {
        const std::vector<T> P = weights(sizes, q, keys, head, i);
        for (int64_t c = 0; c < sizes.p; ++c) out[i][c] = 0;
        for (size_t j = 0; j < P.size(); ++j)  // (3)
          for (int64_t c = 0; c < sizes.p; ++c) out[i][c] += P[j] * values[static_cast<int64_t>(j)][c];
      }
    }
  }
}

template <class T>
void backward(const AttentionBackward& args) {
  const AttentionSizes& sizes = args.sizes;
  args.dq.fill_zero();
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    for (int64_t head = 0; head < sizes.heads; ++head) {
      const auto of_head = [&](const Tensor& all) { return head_of<T>(all, sizes, args.seqs, s, head); };
      const auto of_keys = [&](const Tensor& all) {
        return keys_of<T>(all, sizes, args.seqs, s, sizes.group_of(head));
      };
      const auto q = of_head(args.q), dout = of_head(args.dout), dq = of_head(args.dq);
      const auto keys = of_keys(args.k), values = of_keys(args.v), dk = of_keys(args.dk), dv = of_keys(args.dv);
      for (int64_t i = 0; i < q.rows; ++i) {
        const std::vector<T> P = weights(sizes, q, keys, head, i);
        std::vector<T> dP(P.size(), T(0));
        T shared = 0;
        for (size_t j = 0; j < P.size(); ++j) {
          for (int64_t c = 0; c < sizes.p; ++c) dP[j] += dout[i][c] * values[static_cast<int64_t>(j)][c];  // (5)
          shared += P[j] * dP[j];
        }
        for (size_t at = 0; at < P.size(); ++at) {
          const auto j = static_cast<int64_t>(at);
          const T dS = P[at] * (dP[at] - shared) * T(sizes.scale);  // (6)
          for (int64_t c = 0; c < sizes.p; ++c) {                   // (7)
            dq[i][c] += dS * keys[j][c];
            dk[j][c] += dS * q[i][c];
            dv[j][c] += P[at] * dout[i][c];
          }
        }
      }
    }
  }
}

}  // namespace

void attention_forward(const AttentionForward& args, Threads&) {
  args.q.dtype() == DType::f64 ? forward<double>(args) : forward<float>(args);
}

void attention_backward(const AttentionBackward& args, Threads&) {
  args.q.dtype() == DType::f64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace ssm::ref
