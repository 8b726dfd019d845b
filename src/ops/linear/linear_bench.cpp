// linear: few rows against memory, many against the machine's rate of products: on the cpu BLAS with its own threads on
// the same operands, on a GPU one large product. Some rows and some outputs are compared with f64.
#include <algorithm>

#include "bench/harness.h"
#include "ops/linear/gemm.h"
#include "ops/linear/linear.h"

namespace ssm::bench {
namespace {

struct Product {
  int64_t t, in, out;
  DType dtype = DType::f32;  // of the weight
  std::string shape() const { return text(t, " x ", in, " x ", out); }
  double operations() const { return 2.0 * static_cast<double>(t * in * out); }
};

// The first rows of y and dx, and the gradient of the first outputs' weights.
constexpr int64_t kChecked = 4;

LinearForward operands(const Bench& bench, const Product& p) {
  return {.x = bench.random("x", {p.t, p.in}),
          .weight = bench.random("weight", {p.out, p.in}).to(p.dtype),
          .bias = {},
          .y = bench.empty({p.t, p.out})};
}

void check_forward(const Bench& bench, const LinearForward& in) {
  const int64_t rows = std::min(kChecked, in.x.size(0));
  const LinearForward some{.x = exact_copy(in.x.rows(0, rows)),
                           .weight = exact_copy(in.weight),
                           .bias = {},
                           .y = Tensor::empty({rows, in.y.size(1)}, DType::f64)};
  ref::linear_forward(some, bench.threads());
  SSM_RUN(bench.device(), bench.threads(), linear_forward, in);
  bench.check(in.y.rows(0, rows), some.y, bench.tolerance(1e-4), "linear");
}

void check_backward(const Bench& bench, const LinearBackward& back) {
  const int64_t rows = std::min(kChecked, back.x.size(0)), outputs = std::min(kChecked, back.weight.size(0));
  SSM_RUN(bench.device(), bench.threads(), linear_backward, back);
  const LinearBackward of_x{.x = exact_copy(back.x.rows(0, rows)),
                            .weight = exact_copy(back.weight),
                            .dy = exact_copy(back.dy.rows(0, rows)),
                            .dx = Tensor::empty({rows, back.x.size(1)}, DType::f64)};
  ref::linear_backward(of_x, bench.threads());
  bench.check(back.dx.rows(0, rows), of_x.dx, bench.tolerance(1e-4), "linear, dx");
  const LinearBackward of_weight{.x = exact_copy(back.x),
                                 .weight = exact_copy(back.weight.rows(0, outputs)),
                                 .dy = exact_copy(back.dy.columns(0, outputs)),
                                 .dweight = Tensor::empty({outputs, back.x.size(1)}, DType::f64)};
  ref::linear_backward(of_weight, bench.threads());
  bench.check(back.dweight.rows(0, outputs), of_weight.dweight, bench.tolerance(1e-4), "linear, dweight");
}

// Decoding: the time to read the weight. On a GPU each call has a weight of its own.
void bench_few_rows(Bench& bench, const Product& p) {
  const std::string name = text("linear ", name_of(p.dtype));
  if (!bench.wanted(name, p.shape())) return;
  std::vector<LinearForward> calls = {operands(bench, p)};
  check_forward(bench, calls[0]);
  const auto bytes = static_cast<double>(calls[0].weight.bytes());
  const int64_t count = bench.calls_past_cache(bytes);
  while (static_cast<int64_t>(calls.size()) < count) {
    calls.push_back(calls[0]);
    calls.back().weight = calls[0].weight.clone();
  }
  const Timing timing = bench.time(
      [&] {
        for (const LinearForward& one : calls) SSM_RUN(bench.device(), bench.threads(), linear_forward, one);
      },
      count);
  bench.add({.group = "op",
             .name = name,
             .shape = p.shape(),
             .timing = timing,
             .rate = bytes / timing.median / 1e9,
             .unit = "GB/s",
             .limit = bench.bandwidth() / 1e9,
             .limit_name = bench.bandwidth_name()});
}

void bench_against_blas(Bench& bench, const Product& p) {
  if (!bench.wanted("gemm", p.shape())) return;
  const Tensor x = random("x", {p.t, p.in}), weight = random("weight", {p.out, p.in});
  const Tensor ours = Tensor::empty({p.t, p.out}, DType::f32), theirs = Tensor::empty({p.t, p.out}, DType::f32);
  const auto run = [&] {
    cpu::gemm(x.matrix<float>(), Transpose::no, weight.matrix<float>(), Transpose::yes, ours.matrix<float>(), false,
              bench.threads());
  };
  const auto rival = [&] {
    blas_gemm(x.matrix<float>(), false, weight.matrix<float>(), true, theirs.matrix<float>(), bench.threads().count());
  };
  run(), rival();
  bench.check(ours, theirs, 1e-5, "gemm");
  const auto [mine, other] = time_in_turn(run, rival);
  bench.add({.group = "op",
             .name = "gemm",
             .shape = p.shape(),
             .timing = mine,
             .rate = p.operations() / mine.median / 1e9,
             .unit = "GFLOP/s",
             .rival = p.operations() / other.median / 1e9,
             .rival_name = "OpenBLAS threads"});
}

void bench_training(Bench& bench, const Product& p) {
  const std::string name = text("linear ", name_of(p.dtype)), backward_name = name + " backward";
  if (!bench.wanted(name, p.shape()) && !bench.wanted(backward_name, p.shape())) return;
  const LinearForward forward = operands(bench, p);
  const LinearBackward backward{.x = forward.x,
                                .weight = forward.weight,
                                .dy = bench.random("dy", {p.t, p.out}),
                                .dx = bench.empty({p.t, p.in}),
                                .dweight = bench.empty_f32({p.out, p.in})};
  check_forward(bench, forward);
  check_backward(bench, backward);
  const auto add = [&](const std::string& what, const Timing& timing, double operations) {
    bench.add({.group = "op",
               .name = what,
               .shape = p.shape(),
               .timing = timing,
               .rate = operations / timing.median / 1e12,
               .unit = "TFLOP/s",
               .limit = bench.products() / 1e12,
               .limit_name = Bench::kProductsName});
  };
  add(name, bench.time([&] { SSM_RUN(bench.device(), bench.threads(), linear_forward, forward); }), p.operations());
  add(backward_name, bench.time([&] { SSM_RUN(bench.device(), bench.threads(), linear_backward, backward); }),
      2 * p.operations());
}

}  // namespace

void bench_linear(Bench& bench) {
  if (bench.on_gpu()) {
    const DType dtype = bench.dtype();
    // Projections and head of the 130M and the 1.4B model: writing, then training on 16,384 and 8,192 tokens.
    for (const int64_t t : {1, 16, 64})
      for (const Product& p :
           {Product{t, 768, 3072, dtype}, Product{t, 768, 50280, dtype}, Product{t, 2048, 8192, dtype},
            Product{t, 4096, 160, dtype}, Product{t, 4096, 2048, dtype}})
        bench_few_rows(bench, p);
    for (const Product& p :
         {Product{16384, 768, 3072, dtype}, Product{16384, 1536, 80, dtype}, Product{16384, 48, 1536, dtype},
          Product{16384, 1536, 768, dtype}, Product{8192, 2048, 8192, dtype}, Product{8192, 4096, 160, dtype},
          Product{8192, 128, 4096, dtype}, Product{8192, 4096, 2048, dtype}})
      bench_training(bench, p);
    return;
  }
  // The four projections of the 130M model, then its head.
  for (const Product& p :
       {Product{1, 768, 3072}, Product{1, 1536, 768}, Product{1, 768, 50280}, Product{1, 768, 50280, DType::bf16},
        Product{1, 768, 50280, DType::f16}, Product{8, 768, 50280}, Product{16, 768, 50280}})
    bench_few_rows(bench, p);
  for (const Product& p : {Product{512, 768, 3072}, Product{512, 1536, 80}, Product{512, 48, 1536},
                           Product{512, 1536, 768}, Product{2048, 384, 1536}})
    bench_against_blas(bench, p);
}

}  // namespace ssm::bench
