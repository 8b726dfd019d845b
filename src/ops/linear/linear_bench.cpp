// linear: decoding against memory, prefill against BLAS with its own threads.
#include "bench/harness.h"
#include "ops/linear/gemm.h"
#include "ops/linear/linear.h"

namespace ssm::bench {

void bench_linear(Bench& bench) {
  struct Product {
    int64_t t, in, out;
    DType dtype;
  };
  // The four projections of the 130M model, then its head.
  for (const Product& p :
       {Product{1, 768, 3072, DType::f32}, Product{1, 1536, 768, DType::f32}, Product{1, 768, 50280, DType::f32},
        Product{1, 768, 50280, DType::bf16}, Product{1, 768, 50280, DType::f16}, Product{8, 768, 50280, DType::f32},
        Product{16, 768, 50280, DType::f32}}) {
    const Var x{random("x", {p.t, p.in}), {}}, weight{random("weight", {p.out, p.in}).to(p.dtype), {}};
    const Tensor y = linear(bench.ctx(), x, weight).value;
    bench.check(y, linear(bench.ref(), x, {weight.value.to(DType::f32), {}}).value, 1e-4, "linear");
    const double bytes = static_cast<double>(weight.value.bytes());
    const Timing timing = time([&] { linear(bench.ctx(), x, weight); });
    bench.add({.group = "op",
               .name = text("linear ", name_of(p.dtype)),
               .shape = text(p.t, " x ", p.in, " x ", p.out),
               .timing = timing,
               .rate = bytes / timing.median / 1e9,
               .unit = "GB/s",
               .limit = bench.read_bandwidth() / 1e9,
               .limit_name = "read memory"});
  }
  for (const Product& p :
       {Product{512, 768, 3072, DType::f32}, Product{512, 1536, 80, DType::f32}, Product{512, 48, 1536, DType::f32},
        Product{512, 1536, 768, DType::f32}, Product{2048, 384, 1536, DType::f32}}) {
    const Tensor x = random("x", {p.t, p.in}), weight = random("weight", {p.out, p.in});
    const Tensor ours = Tensor::empty({p.t, p.out}, DType::f32), theirs = Tensor::empty({p.t, p.out}, DType::f32);
    const auto run = [&] {
      cpu::gemm(x.matrix<float>(), Transpose::no, weight.matrix<float>(), Transpose::yes, ours.matrix<float>(), false,
                bench.threads());
    };
    const auto rival = [&] {
      blas_gemm(x.matrix<float>(), false, weight.matrix<float>(), true, theirs.matrix<float>(),
                bench.threads().count());
    };
    run(), rival();
    bench.check(ours, theirs, 1e-5, "gemm");
    const auto [mine, other] = time_in_turn(run, rival);
    const double operations = 2.0 * static_cast<double>(p.t * p.in * p.out);
    bench.add({.group = "op",
               .name = "gemm",
               .shape = text(p.t, " x ", p.in, " x ", p.out),
               .timing = mine,
               .rate = operations / mine.median / 1e9,
               .unit = "GFLOP/s",
               .rival = operations / other.median / 1e9,
               .rival_name = "OpenBLAS threads"});
  }
}

}  // namespace ssm::bench
