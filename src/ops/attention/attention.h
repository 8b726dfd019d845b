// Causal attention with softmax over packed sequences (Vaswani et al. 2017), multi-head or with fewer heads of keys and
// values than of queries (Ainslie et al. 2023), keys and values carried as a state that grows:
//
//   K^s, V^s = [ the n rows of sequence s's slot ; rows of k, v of sequence s ]                        (1)
//   S_ij = scale q_i . K^s_j + slope (j - n - i),   j <= n + i                                          (2)
//   P_ij = exp(S_ij) / sum_j exp(S_ij),   out_i = sum_j P_ij V^s_j                                       (3)
//   new rows of the slot = K^s, V^s;   new n = n + rows of s                                            (4)
//
//   q (t, m p)  k, v (t, g p), columns of wider matrices or not  ->  out (t, m p);  m a multiple of g: head h of q
//   meets head h g / m of k and v. counts (slots, 1) i64: n;  kv (slots, capacity, 2 g p): K, then V (core/state.h)
//
// slope is 0, or ALiBi's of the head (Press et al. 2022; README.md). i counts from the start of the sequence's rows. No
// state: n = 0, nothing is kept. Without a tape rows are appended in place, under a tape `*kv` and `*counts` become new
// values. counts are in the host's memory. All of one dtype: f32 (f64 on ref, bf16 and f16 too on cuda).
//
// Saved for backward: q, k, v or with a state the new kv; in bf16 and f16 out and 4 bytes a row and head; P is made
// again. Work: 4 p operations for each head, row and
// key forward, 10 p backward; memory: 4 bytes for each of about 2^18 scores a thread.
#pragma once

#include <vector>

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

struct AttentionIn {
  Var q, k, v;
  int64_t heads, groups;  // m, g
  double scale;
  bool alibi = false;
};

Var attention(const Ctx& ctx, const AttentionIn& in, const Seqs& seqs, Var* counts, Var* kv);

// m slopes: 2^(-8 i / m), i = 1 .. m, for a power of two; README.md has the others.
std::vector<double> alibi_slopes(int64_t heads);

struct AttentionSizes {
  int64_t heads, groups, p;
  double scale;
  std::vector<double> slopes;   // (m)
  std::vector<int64_t> before;  // n of each sequence

  int64_t group_of(int64_t head) const { return head * groups / heads; }
};

// k and v here are all keys: (t, g p), or with a state (slots, capacity, g p), the new rows already in their place.
struct AttentionForward {
  const AttentionSizes& sizes;
  const Seqs& seqs;
  Tensor q, k, v;
  Tensor out;
  Tensor lse;  // (m, t) f32: log2 of the sum of (3) below the line. On cuda, where wants_lse() says so; else absent
};

// (1) and (4): the rows of k and v (t, g p) behind the others of their slots in kv (slots, capacity, 2 g p).
struct AttentionAppend {
  const AttentionSizes& sizes;
  const Seqs& seqs;
  Tensor k, v;
  Tensor kv;
};

struct AttentionBackward {
  const AttentionSizes& sizes;
  const Seqs& seqs;
  Tensor q, k, v, dout;
  Tensor out, lse;  // on cuda, as in the forward; else absent
  Tensor dq;        // assigned
  Tensor dk, dv;    // of k's shape; added to
};

namespace ref {
void attention_forward(const AttentionForward&, Threads&);
void attention_backward(const AttentionBackward&, Threads&);
}  // namespace ref
namespace cpu {
void attention_forward(const AttentionForward&, Threads&);
void attention_backward(const AttentionBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void attention_append(const AttentionAppend&, Stream);
bool wants_lse(const AttentionForward&);  // and out, to be kept for the backward
void attention_forward(const AttentionForward&, Stream);
void attention_backward(const AttentionBackward&, Stream);
}  // namespace cuda

// Keys or values of one sequence and one group of heads: row j is (n + rows of s, p) row j.
template <class T>
Matrix<T> keys_of(const Tensor& all, const AttentionSizes& sizes, const Seqs& seqs, int64_t s, int64_t group) {
  const auto at = static_cast<size_t>(s);
  const int64_t first = all.rank() == 3 ? seqs.slots[at] * all.stride(0) : seqs.offsets[at] * all.stride(0);
  return {all.data<T>() + first + group * sizes.p, sizes.before[at] + seqs.length(s), sizes.p, all.stride(-2)};
}

// A head's columns of the rows of a sequence.
template <class T>
Matrix<T> head_of(const Tensor& all, const AttentionSizes& sizes, const Seqs& seqs, int64_t s, int64_t head) {
  const auto rows = all.matrix<T>();
  return {rows[seqs.offsets[static_cast<size_t>(s)]] + head * sizes.p, seqs.length(s), sizes.p, rows.stride};
}

}  // namespace ssm
