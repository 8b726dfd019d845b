// The front of attention: checks, the state's growth, allocation, choice of the version, record of the backward.
#include "ops/attention/attention.h"

#include <algorithm>
#include <cmath>

#include "core/state.h"

namespace ssm {
namespace {

AttentionSizes check(const AttentionIn& in, const Seqs& seqs, const Var* counts, const Var* kv) {
  const Shape &q = in.q.value.shape(), &k = in.k.value.shape(), &v = in.v.value.shape();
  require(in.groups > 0 && in.heads > 0 && in.heads % in.groups == 0, "attention: ", in.heads, " heads, ", in.groups,
          " of keys, expected a multiple");
  require(q.rank() == 2 && q[1] > 0 && q[1] % in.heads == 0 && q[0] == seqs.tokens(), "attention: q is ", q,
          ", expected (", seqs.tokens(), ", ", in.heads, " times the width of a head)");
  const int64_t p = q[1] / in.heads;
  const Shape expected = {q[0], in.groups * p};
  require(k == expected && v == expected, "attention: k is ", k, " and v ", v, ", expected ", expected);
  require((counts == nullptr) == (kv == nullptr), "attention: a state is counts and kv");
  AttentionSizes sizes{
      .heads = in.heads,
      .groups = in.groups,
      .p = p,
      .scale = in.scale,
      .slopes = in.alibi ? alibi_slopes(in.heads) : std::vector<double>(static_cast<size_t>(in.heads), 0.0),
      .before = token_counts(counts ? counts->value : Tensor(), seqs)};
  if (!kv) return sizes;
  const Shape& rows = kv->value.shape();
  require(rows.rank() == 3 && rows[2] == 2 * in.groups * p && counts->value.shape() == Shape{rows[0], 1},
          "attention: kv is ", rows, " and counts ", counts->value.shape(), ", expected (slots, capacity, ",
          2 * in.groups * p, ") and (slots, 1)");
  require(kv->value.dtype() == in.q.value.dtype(), "attention: kv is ", name_of(kv->value.dtype()), " and q ",
          name_of(in.q.value.dtype()), ", expected the same");
  for (const int64_t n : sizes.before)
    require(0 <= n && n <= rows[1], "attention: ", n, " tokens in a state with room for ", rows[1]);
  return sizes;
}

// The rows of sequence s that a call adds to kv: (rows of s, 2 g p).
Tensor added_rows(const Tensor& kv, const AttentionSizes& sizes, const Seqs& seqs, int64_t s) {
  const int64_t slot = seqs.slots[static_cast<size_t>(s)], n = sizes.before[static_cast<size_t>(s)];
  return kv.rows(slot, slot + 1).reshape({kv.size(1), kv.size(2)}).rows(n, n + seqs.length(s));
}

// (1) and (4).
void append(const Ctx& ctx, const AttentionIn& in, const AttentionSizes& sizes, const Seqs& seqs, Var& kv) {
  int64_t needed = 0;
  for (int64_t s = 0; s < seqs.count(); ++s)
    needed = std::max(needed, sizes.before[static_cast<size_t>(s)] + seqs.length(s));
  const Tensor old = kv.value;
  make_room(kv, needed);
  if (ctx.tape) kv = ctx.output(kv.value.storage() == old.storage() ? old.clone() : kv.value);
  if constexpr (kHasCuda)  // one kernel for any number of sequences
    if (ctx.device.is_cuda())
      return cuda::attention_append({.sizes = sizes, .seqs = seqs, .k = in.k.value, .v = in.v.value, .kv = kv.value},
                                    cuda::stream(ctx.device));
  const int64_t width = in.groups * sizes.p;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t begin = seqs.offsets[static_cast<size_t>(s)], end = begin + seqs.length(s);
    if (begin == end) continue;
    const Tensor rows = added_rows(kv.value, sizes, seqs, s);
    rows.columns(0, width).copy_from(in.k.value.rows(begin, end));
    rows.columns(width, 2 * width).copy_from(in.v.value.rows(begin, end));
  }
}

// The gradient of all keys and values, (slots, capacity, 2 g p), goes to the rows this call added and, apart from
// those, to the state it found, whose capacity may have been smaller.
void distribute(const Tensor& dkv, const AttentionSizes& sizes, const Seqs& seqs, const Tensor& dk, const Tensor& dv,
                const Tensor& dold) {
  const int64_t width = dkv.size(2) / 2;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t begin = seqs.offsets[static_cast<size_t>(s)], end = begin + seqs.length(s);
    if (begin == end) continue;
    const Tensor rows = added_rows(dkv, sizes, seqs, s);
    if (dk) dk.rows(begin, end).copy_from(rows.columns(0, width));
    if (dv) dv.rows(begin, end).copy_from(rows.columns(width, 2 * width));
    rows.fill_zero();
  }
  if (!dold || dold.size(1) == 0) return;
  const Shape flat = {dkv.size(1), dkv.size(2)}, old_flat = {dold.size(1), dold.size(2)};
  for (int64_t slot = 0; slot < dold.size(0); ++slot)
    dold.rows(slot, slot + 1).reshape(old_flat).copy_from(dkv.rows(slot, slot + 1).reshape(flat).rows(0, dold.size(1)));
}

struct Wanted {
  GradPtr q, k, v, kv;
};

void backward(const Device& device, Threads& threads, const AttentionSizes& sizes, const Seqs& seqs,
              const Wanted& wanted, bool with_lse, const Backward& b) {
  const GradOut q_out(wanted.q), k_out(wanted.k), v_out(wanted.v), kv_out(wanted.kv);
  AttentionBackward back{
      .sizes = sizes, .seqs = seqs, .q = b.saved("q"), .k = b.saved("k"), .v = b.saved("v"), .dout = b.grad(0)};
  if (with_lse) back.out = b.saved("out"), back.lse = b.saved("lse");
  const auto zeros = [&](const Shape& shape) { return Tensor::zeros(shape, back.q.dtype(), device); };
  back.dq = q_out.out ? q_out.out : zeros(back.q.shape());
  const bool carried = back.k.rank() == 3;
  Tensor dkv;
  if (carried) {
    const Tensor given = b.grad_if_any(1);
    const int64_t width = back.k.size(2);
    dkv = given ? given.clone() : zeros({back.k.size(0), back.k.size(1), 2 * width});
    back.dk = dkv.columns(0, width);
    back.dv = dkv.columns(width, 2 * width);
  } else {
    const auto start = [&](const Tensor& wanted_here, const Tensor& like) {
      if (wanted_here) wanted_here.fill_zero();
      return wanted_here ? wanted_here : zeros(like.shape());
    };
    back.dk = start(k_out.out, back.k);
    back.dv = start(v_out.out, back.v);
  }
  SSM_RUN(device, threads, attention_backward, back);
  if (carried) distribute(dkv, sizes, seqs, k_out.out, v_out.out, kv_out.out);
}

}  // namespace

// For m that is no power of two: those of the next lower power, then every second one of its double.
std::vector<double> alibi_slopes(int64_t heads) {
  int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  std::vector<double> slopes;
  for (int64_t i = 1; i <= power; ++i)
    slopes.push_back(std::exp2(-8 * static_cast<double>(i) / static_cast<double>(power)));
  for (int64_t i = 1; static_cast<int64_t>(slopes.size()) < heads; i += 2)
    slopes.push_back(std::exp2(-8 * static_cast<double>(i) / static_cast<double>(2 * power)));
  return slopes;
}

Var attention(const Ctx& ctx, const AttentionIn& in, const Seqs& seqs, Var* counts, Var* kv) {
  const AttentionSizes sizes = check(in, seqs, counts, kv);
  const Var before = kv ? *kv : Var{};
  Tensor k = in.k.value, v = in.v.value;
  if (kv) {
    append(ctx, in, sizes, seqs, *kv);
    advance_counts(ctx, *counts, seqs);
    k = kv->value.columns(0, in.groups * sizes.p);
    v = kv->value.columns(in.groups * sizes.p, 2 * in.groups * sizes.p);
  }
  AttentionForward args{.sizes = sizes,
                        .seqs = seqs,
                        .q = in.q.value,
                        .k = k,
                        .v = v,
                        .out = Tensor::empty(in.q.value.shape(), in.q.value.dtype(), ctx.device)};
  if constexpr (kHasCuda)
    if (ctx.tape && ctx.device.is_cuda() && cuda::wants_lse(args))
      args.lse = Tensor::empty({in.heads, in.q.value.size(0)}, DType::f32, ctx.device);
  SSM_RUN(ctx.device, *ctx.threads, attention_forward, args);
  const Var out = ctx.output(args.out);
  if (!ctx.tape) return out;
  std::vector<GradPtr> outputs = {out.grad};
  if (kv) outputs.push_back(kv->grad);
  const Wanted wanted{in.q.grad, in.k.grad, in.v.grad, before.grad};
  std::vector<Saved> saved = {{"q", args.q}, {"k", k}, {"v", v}};
  if (args.lse) saved.insert(saved.end(), {{"out", args.out}, {"lse", args.lse}});
  ctx.tape->record(
      "attention", saved, outputs,
      [device = ctx.device, threads = ctx.threads, sizes, seqs, wanted, with_lse = static_cast<bool>(args.lse)](
          const Backward& b) { backward(device, *threads, sizes, seqs, wanted, with_lse, b); });
  return out;
}

}  // namespace ssm
