// attention against its matrix products alone: those over all keys a causal row may see, in the same run; on a GPU
// against large products. Reading a prompt and its backward; on the cpu writing one token, which is bound by reading
// the keys and values. Some rows are compared with f64 before anything is timed.
#include <algorithm>

#include "bench/harness.h"
#include "ops/attention/attention.h"
#include "ops/linear/gemm.h"

namespace ssm::bench {
namespace {

struct Heads {
  int64_t m, g, p;
};

AttentionSizes sizes_of(const Heads& heads, int64_t before) {
  return {.heads = heads.m,
          .groups = heads.g,
          .p = heads.p,
          .scale = 0.125,
          .slopes = std::vector<double>(static_cast<size_t>(heads.m), 0.0),
          .before = {before}};
}

// The last rows of a forward against ref in f64, as rows that follow all others.
void check(const Bench& bench, const AttentionForward& in) {
  const int64_t t = in.q.size(0), rows = std::min<int64_t>(8, t), keys = in.k.size(0);
  AttentionSizes sizes = in.sizes;
  sizes.before = {keys - rows};
  const Seqs seqs = Seqs::dense(1, rows);
  const Shape slot = {1, keys, in.k.size(1)};
  const Tensor out = Tensor::empty({rows, in.q.size(1)}, DType::f64);
  ref::attention_forward({.sizes = sizes,
                          .seqs = seqs,
                          .q = exact_copy(in.q.rows(t - rows, t)),
                          .k = exact_copy(in.k).reshape(slot),
                          .v = exact_copy(in.v).reshape(slot),
                          .out = out},
                         bench.threads());
  bench.check(in.out.rows(t - rows, t), out, bench.on_gpu() ? bench.tolerance(1e-5) : 1e-5, "attention");
}

// The products of a causal forward, in blocks of rows with the keys up to their end: q K' and P V.
void products_alone(const Bench& bench, const AttentionForward& in, const Tensor& scores) {
  constexpr int64_t kBlock = 128;
  const int64_t t = in.q.size(0), p = in.sizes.p;
  bench.threads().parallel(in.sizes.heads * ((t + kBlock - 1) / kBlock), [&](int64_t task, int worker) {
    const int64_t head = task % in.sizes.heads, begin = task / in.sizes.heads * kBlock,
                  rows = std::min(kBlock, t - begin), keys = begin + rows, group = in.sizes.group_of(head);
    const auto block = [&](const Tensor& of, int64_t at, int64_t first, int64_t count) {
      const auto all = of.matrix<float>();
      return Matrix<float>{all[first] + at * p, count, p, all.stride};
    };
    const Matrix<float> P{scores.data<float>() + worker * kBlock * t, rows, keys, keys};
    Threads alone(1);
    cpu::gemm(block(in.q, head, begin, rows), Transpose::no, block(in.k, group, 0, keys), Transpose::yes, P, false,
              alone);
    cpu::gemm(P, Transpose::no, block(in.v, group, 0, keys), Transpose::no, block(in.out, head, begin, rows), false,
              alone);
  });
}

void bench_prompt(Bench& bench, const Heads& heads, int64_t t) {
  const std::string shape = text(t, " x ", heads.m, "/", heads.g, " x ", heads.p);
  const bool forth = bench.wanted("attention forward", shape), back = bench.wanted("attention backward", shape);
  if (!forth && !back) return;
  const AttentionSizes sizes = sizes_of(heads, 0);
  const Seqs seqs = Seqs::dense(1, t);
  const AttentionForward in{.sizes = sizes,
                            .seqs = seqs,
                            .q = bench.random_f32("q", {t, heads.m * heads.p}),
                            .k = bench.random_f32("k", {t, heads.g * heads.p}),
                            .v = bench.random_f32("v", {t, heads.g * heads.p}),
                            .out = bench.empty_f32({t, heads.m * heads.p})};
  cpu::attention_forward(in, bench.threads());
  check(bench, in);
  const auto pairs = static_cast<double>(heads.m) * static_cast<double>(t) * static_cast<double>(t + 1) / 2;
  const double operations = 4 * pairs * static_cast<double>(heads.p);
  const Tensor scores = bench.empty_f32({bench.threads().count(), 128 * t});
  if (forth) {
    const auto [ours, products] =
        time_in_turn([&] { cpu::attention_forward(in, bench.threads()); }, [&] { products_alone(bench, in, scores); });
    bench.add({.group = "op",
               .name = "attention forward",
               .shape = shape,
               .timing = ours,
               .rate = operations / ours.median / 1e9,
               .unit = "GFLOPS",
               .limit = operations / products.median / 1e9,
               .limit_name = "its products alone"});
  }
  if (!back) return;
  AttentionBackward gradient{.sizes = sizes, .seqs = seqs, .q = in.q, .k = in.k, .v = in.v};
  gradient.dout = bench.random_f32("dout", in.out.shape());
  gradient.dq = bench.empty_f32(in.q.shape());
  gradient.dk = Tensor::zeros(in.k.shape(), DType::f32);
  gradient.dv = Tensor::zeros(in.v.shape(), DType::f32);
  const auto [ours, products] = time_in_turn([&] { cpu::attention_backward(gradient, bench.threads()); },
                                             [&] { products_alone(bench, in, scores); });
  bench.add({.group = "op",
             .name = "attention backward",
             .shape = shape,
             .timing = ours,
             .rate = 2.5 * operations / ours.median / 1e9,
             .unit = "GFLOPS",
             .limit = operations / products.median / 1e9,
             .limit_name = "the forward's products alone"});
}

void bench_token(Bench& bench, const Heads& heads, int64_t keys) {
  const std::string shape = text("1 of ", keys, " x ", heads.m, "/", heads.g, " x ", heads.p);
  if (!bench.wanted("attention token", shape)) return;
  const AttentionSizes sizes = sizes_of(heads, keys - 1);
  const Seqs seqs = Seqs::dense(1, 1);
  const int64_t width = heads.g * heads.p;
  const Tensor kv = bench.random_f32("kv", {1, keys, 2 * width});
  const AttentionForward in{.sizes = sizes,
                            .seqs = seqs,
                            .q = bench.random_f32("q", {1, heads.m * heads.p}),
                            .k = kv.columns(0, width),
                            .v = kv.columns(width, 2 * width),
                            .out = bench.empty_f32({1, heads.m * heads.p})};
  const Timing timing = bench.time([&] { cpu::attention_forward(in, bench.threads()); }, 1);
  bench.add({.group = "op",
             .name = "attention token",
             .shape = shape,
             .timing = timing,
             .rate = static_cast<double>(kv.bytes()) / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.bandwidth() / 1e9,
             .limit_name = bench.bandwidth_name()});
}

void bench_on_gpu(Bench& bench, const Heads& heads, int64_t sequences, int64_t length) {
  const std::string shape = text(sequences, " x ", length, " x ", heads.m, "/", heads.g, " x ", heads.p);
  const bool forth = bench.wanted("attention forward", shape), back = bench.wanted("attention backward", shape);
  if (!forth && !back) return;
  AttentionSizes sizes = sizes_of(heads, 0);
  sizes.before.assign(static_cast<size_t>(sequences), 0);
  const Seqs seqs = Seqs::dense(sequences, length);
  const int64_t t = sequences * length;
  AttentionForward in{.sizes = sizes,
                      .seqs = seqs,
                      .q = bench.random("q", {t, heads.m * heads.p}),
                      .k = bench.random("k", {t, heads.g * heads.p}),
                      .v = bench.random("v", {t, heads.g * heads.p}),
                      .out = bench.empty({t, heads.m * heads.p})};
  if constexpr (kHasCuda)
    if (cuda::wants_lse(in)) in.lse = bench.empty_f32({heads.m, t});
  AttentionBackward gradient{.sizes = sizes, .seqs = seqs, .q = in.q, .k = in.k, .v = in.v};
  gradient.dout = bench.random("dout", in.out.shape());
  gradient.out = in.out;
  gradient.lse = in.lse;
  gradient.dq = bench.empty(in.q.shape());
  gradient.dk = bench.empty(in.k.shape());
  gradient.dv = bench.empty(in.v.shape());
  gradient.dk.fill_zero();
  gradient.dv.fill_zero();
  SSM_RUN(bench.device(), bench.threads(), attention_forward, in);
  const AttentionForward last{.sizes = sizes,
                              .seqs = seqs,
                              .q = in.q.rows(t - length, t),
                              .k = in.k.rows(t - length, t),
                              .v = in.v.rows(t - length, t),
                              .out = in.out.rows(t - length, t)};
  check(bench, last);
  const double operations = 2 * static_cast<double>(t) * static_cast<double>(length + 1) *
                            static_cast<double>(heads.m) * static_cast<double>(heads.p);
  const auto add = [&](const char* name, const Timing& timing, double work) {
    bench.add({.group = "op",
               .name = name,
               .shape = shape,
               .timing = timing,
               .rate = work / timing.median / 1e12,
               .unit = "TFLOPS",
               .limit = bench.products() / 1e12,
               .limit_name = Bench::kProductsName});
  };
  if (forth)
    add("attention forward", bench.time([&] { SSM_RUN(bench.device(), bench.threads(), attention_forward, in); }),
        operations);
  if (back)
    add("attention backward",
        bench.time([&] { SSM_RUN(bench.device(), bench.threads(), attention_backward, gradient); }), 2.5 * operations);
}

}  // namespace

void bench_attention(Bench& bench) {
  if (bench.on_gpu()) {
    bench_on_gpu(bench, {16, 16, 64}, 8, 2048);
    bench_on_gpu(bench, {16, 4, 64}, 8, 2048);
    bench_on_gpu(bench, {16, 16, 128}, 4, 2048);
    bench_on_gpu(bench, {16, 16, 64}, 1, 16384);
    return;
  }
  for (const int64_t t : {256, 2048}) bench_prompt(bench, {12, 12, 64}, t);
  bench_prompt(bench, {12, 3, 64}, 2048);
  for (const int64_t keys : {256, 16384}) bench_token(bench, {12, 12, 64}, keys);
}

}  // namespace ssm::bench
