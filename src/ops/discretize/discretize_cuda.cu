// discretize on a GPU, in double as on the cpu: a warp a channel, its lanes the modes. Channels that share a copy of A
// leave their gradients side by side; a second kernel adds them up in order. Equations: README.md.
#include "core/cuda_kernel.cuh"
#include "ops/complex.cuh"
#include "ops/discretize/discretize.h"

namespace ssm::cuda {
namespace {

using Number = Complex<double>;
constexpr int kWarp = 32, kChannels = 4;  // channels of a block, a warp each

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

struct System {
  const float *inv_dt, *A_real, *A_imag, *B, *C, *P;
  int64_t parts, n, e, copies;
  bool zoh, exponential;

  explicit System(const auto& args)
      : inv_dt(elements<const float>(args.inv_dt)),
        A_real(elements<const float>(args.A_real)),
        A_imag(elements<const float>(args.A_imag)),
        B(elements<const float>(args.B)),
        C(elements<const float>(args.C)),
        P(elements<const float>(args.P)),
        parts(args.A_imag ? 2 : 1),
        n(args.A_real.size(1)),
        e(args.inv_dt.size(0)),
        copies(args.A_real.size(0)),
        zoh(args.method == Discretization::zoh),
        exponential(args.step == StepTransform::exp) {}

  __device__ double step(int64_t channel) const {
    const double v = inv_dt[channel];
    return exponential ? exp(v) : v > 20 ? v : log1p(exp(v));
  }
  __device__ double dstep(int64_t channel) const {  // of inv_dt
    const double v = inv_dt[channel];
    return exponential ? exp(v) : 1 / (1 + exp(-v));
  }
  __device__ Number lambda(int64_t copy, int64_t k) const {
    const int64_t i = copy * n + k;
    return {-exp(static_cast<double>(A_real[i])), A_imag ? -static_cast<double>(A_imag[i]) : 0.0};
  }
  __device__ Number read(const float* from, int64_t row, int64_t k) const {  // of B, C and P
    const float* at = from + (row * n + k) * parts;
    return {at[0], parts == 2 ? at[1] : 0.0};
  }
  __device__ void write(Number value, float* to, int64_t row, int64_t k) const {
    if (!to) return;
    float* at = to + (row * n + k) * parts;
    at[0] = static_cast<float>(value.re);
    if (parts == 2) at[1] = static_cast<float>(value.im);
  }
  // Of the (parts, n, e) tensors.
  __device__ void put(Number value, float* to, int64_t k, int64_t channel) const {
    to[k * e + channel] = static_cast<float>(value.re);
    if (parts == 2) to[(n + k) * e + channel] = static_cast<float>(value.im);
  }
  __device__ Number take(const float* from, int64_t k, int64_t channel) const {
    return {from[k * e + channel], parts == 2 ? from[(n + k) * e + channel] : 0.0};
  }
};

__device__ __forceinline__ Number plus(double a, Number b) { return {a + b.re, b.im}; }
__device__ __forceinline__ Number over(Number a, Number b) { return a * inverse(b); }

// z, q = z / lambda and their derivatives.
struct Mode {
  Number z, q, dz_dlambda, dz_dstep, dq_dlambda, dq_dstep;

  __device__ Mode(double step, Number lambda, bool zoh) {
    if (zoh) {  // (3), left; e^v - 1 from parts that do not cancel
      const Number v = step * lambda;
      double sine, cosine;
      sincos(v.im, &sine, &cosine);
      const double half = sin(v.im / 2);
      z = {expm1(v.re) * cosine - 2 * half * half, exp(v.re) * sine};
      const Number next = plus(1, z);
      q = norm(v) > 0 ? over(z, lambda) : Number{step, 0};
      dz_dlambda = step * next;
      dz_dstep = lambda * next;
      // (step (1 + z) - q) / lambda, whose terms cancel for small v: its series (6) there
      dq_dlambda = norm(v) > 1e-4
                       ? over(step * next - q, lambda)
                       : (step * step) *
                             plus(1.0 / 2, v * plus(1.0 / 3, v * plus(1.0 / 8, v * plus(1.0 / 30, (1.0 / 144) * v))));
      dq_dstep = next;
    } else {  // (3), right, and (7)
      const Number p = inverse(plus(1, (-step / 2) * lambda));
      q = step * p;
      z = lambda * q;
      dz_dlambda = q * p;
      dz_dstep = lambda * p * p;
      dq_dlambda = 0.5 * (q * q);
      dq_dstep = p * p;
    }
  }
};

// What the low-rank part adds, for a channel: (9), (10) and (12). All lanes of a warp have the same.
struct LowRank {
  double s, R, beta;

  __device__ LowRank(const System& system, int64_t copy, double step, int lane) : s(2 / step) {
    double rho = 0;
    beta = 0;
    for (int64_t k = lane; k < system.n; k += kWarp) {
      const Number P = system.read(system.P, copy, k), D = resolvent(system, copy, k);
      rho += 2 * norm(P) * D.re;
      beta += 4 * (conj(P) * D * system.read(system.B, copy, k)).re;
    }
    R = 1 / (1 + warp_sum(rho));
    beta = warp_sum(beta);
  }
  __device__ Number resolvent(const System& system, int64_t copy, int64_t k) const {  // (9)
    return inverse(plus(s, -1.0 * system.lambda(copy, k)));
  }
};

struct Outputs {
  float *z, *b, *c, *f, *g;
};

__global__ void __launch_bounds__(kWarp* kChannels) forward_kernel(System system, Outputs out) {
  const int lane = threadIdx.x;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kChannels + threadIdx.y;
  if (e >= system.e) return;
  const int64_t copy = e % system.copies;
  const double step = system.step(e);
  for (int64_t k = lane; k < system.n; k += kWarp) {
    const Mode mode(step, system.lambda(copy, k), system.zoh);
    system.put(mode.z, out.z, k, e);
    if (!system.P) system.put(system.read(system.B, copy, k) * mode.q, out.b, k, e);  // (4)
    system.put(static_cast<double>(system.parts) * system.read(system.C, e, k), out.c, k, e);
  }
  if (!system.P) return;
  const LowRank low(system, copy, step, lane);
  for (int64_t k = lane; k < system.n; k += kWarp) {
    const Number P = system.read(system.P, copy, k), D = low.resolvent(system, copy, k), g = D * P;
    system.put(g, out.g, k, e);                                                                    // (11)
    system.put((4 * low.s * low.R) * (conj(P) * D), out.f, k, e);                                  // (11)
    system.put(2.0 * (D * system.read(system.B, copy, k)) - (low.R * low.beta) * g, out.b, k, e);  // (12)
  }
}

struct Seeds {
  const float *dz, *db, *dc, *df, *dg;
};
struct Gradients {  // A, B and P: a row a channel; any may be null
  float *inv_dt, *A_real, *A_imag, *B, *C, *P;
};

__global__ void __launch_bounds__(kWarp* kChannels) backward_kernel(System system, Seeds seeds, Gradients out) {
  const int lane = threadIdx.x;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kChannels + threadIdx.y;
  if (e >= system.e) return;
  const int64_t copy = e % system.copies, n = system.n;
  const double step = system.step(e);
  const auto write_A = [&](int64_t k, Number dlambda) {
    if (out.A_real) out.A_real[e * n + k] = static_cast<float>(dlambda.re * system.lambda(copy, k).re);
    if (out.A_imag) out.A_imag[e * n + k] = static_cast<float>(-dlambda.im);
  };
  for (int64_t k = lane; k < n; k += kWarp)
    system.write(static_cast<double>(system.parts) * system.take(seeds.dc, k, e), out.C, e, k);
  double dstep = 0;
  if (!system.P) {
    for (int64_t k = lane; k < n; k += kWarp) {
      const Mode mode(step, system.lambda(copy, k), system.zoh);
      const Number dz = system.take(seeds.dz, k, e), db = system.take(seeds.db, k, e),
                   dq = conj(system.read(system.B, copy, k)) * db;
      system.write(conj(mode.q) * db, out.B, e, k);
      write_A(k, conj(mode.dz_dlambda) * dz + conj(mode.dq_dlambda) * dq);
      dstep += (conj(mode.dz_dstep) * dz + conj(mode.dq_dstep) * dq).re;
    }
    dstep = warp_sum(dstep);
  } else {  // (13)
    const LowRank low(system, copy, step, lane);
    const double s = low.s, R = low.R, phi = R * low.beta;
    double dphi = 0, dR = 0, ds = 0;
    for (int64_t k = lane; k < n; k += kWarp) {
      const Number P = system.read(system.P, copy, k), D = low.resolvent(system, copy, k);
      dphi -= (conj(system.take(seeds.db, k, e)) * D * P).re;
      dR += (conj(system.take(seeds.df, k, e)) * ((4 * s) * (conj(P) * D))).re;
    }
    dphi = warp_sum(dphi);
    dR = warp_sum(dR) + low.beta * dphi;
    const double dbeta = R * dphi, drho = -R * R * dR;
    for (int64_t k = lane; k < n; k += kWarp) {
      const Number P = system.read(system.P, copy, k), B = system.read(system.B, copy, k),
                   D = low.resolvent(system, copy, k);
      const Number dz = system.take(seeds.dz, k, e), db = system.take(seeds.db, k, e), df = system.take(seeds.df, k, e),
                   dg = system.take(seeds.dg, k, e) - phi * db;
      const Number dD = plus(2 * norm(P) * drho, (2 * s) * dz + conj(P) * dg + (4 * s * R) * (P * df) +
                                                     2.0 * (conj(B) * db) + (4 * dbeta) * (P * conj(B)));
      const Number dP = conj(D) * dg + (4 * s * R) * (D * conj(df)) + (4 * dbeta) * (D * B) + (4 * D.re * drho) * P;
      system.write(2.0 * (conj(D) * db) + (4 * dbeta) * (P * conj(D)), out.B, e, k);
      system.write(dP, out.P, e, k);
      write_A(k, conj(D * D) * dD);
      ds += (2.0 * (conj(dz) * D) + (4 * R) * (conj(df) * (conj(P) * D)) - conj(dD) * (D * D)).re;
    }
    dstep = -warp_sum(ds) * 2 / (step * step);
  }
  if (out.inv_dt && lane == 0) out.inv_dt[e] = static_cast<float>(dstep * system.dstep(e));
}

// Rows copy, copy + copies, ... of (e, width) added up, to row `copy` of (copies, width).
__global__ void sum_copies_kernel(const float* from, int64_t e, int64_t copies, int64_t width, float* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= copies * width) return;
  double sum = 0;
  for (int64_t row = i / width; row < e; row += copies) sum += from[row * width + i % width];
  to[i] = static_cast<float>(sum);
}

dim3 blocks_of(int64_t e) { return dim3(static_cast<unsigned>(divide_up(e, kChannels))); }

}  // namespace

void discretize_forward(const DiscretizeForward& args, Stream stream) {
  launch("discretize", forward_kernel, blocks_of(args.inv_dt.size(0)), dim3(kWarp, kChannels), stream, System(args),
         Outputs{elements<float>(args.z), elements<float>(args.b), elements<float>(args.c), elements<float>(args.f),
                 elements<float>(args.g)});
}

void discretize_backward(const DiscretizeBackward& args, Stream stream) {
  const System system(args);
  struct Shared {
    Tensor to, rows;
    int64_t width;
  };
  const auto shared = [&](const Tensor& to, int64_t width) {
    if (!to || system.copies == system.e) return Shared{to, to, width};
    return Shared{to, Tensor::empty({system.e, width}, DType::f32, to.device()), width};
  };
  const int64_t n = system.n, wide = n * system.parts;
  const Shared A_real = shared(args.dA_real, n), A_imag = shared(args.dA_imag, n), B = shared(args.dB, wide),
               P = shared(args.dP, wide);
  launch("discretize", backward_kernel, blocks_of(system.e), dim3(kWarp, kChannels), stream, system,
         Seeds{elements<const float>(args.dz), elements<const float>(args.db), elements<const float>(args.dc),
               elements<const float>(args.df), elements<const float>(args.dg)},
         Gradients{elements<float>(args.dinv_dt), elements<float>(A_real.rows), elements<float>(A_imag.rows),
                   elements<float>(B.rows), elements<float>(args.dC), elements<float>(P.rows)});
  if (system.copies == system.e) return;
  for (const Shared& one : {A_real, A_imag, B, P}) {
    if (!one.to) continue;
    launch("discretize", sum_copies_kernel, dim3(static_cast<unsigned>(divide_up(system.copies * one.width, 256))),
           dim3(256), stream, elements<const float>(one.rows), system.e, system.copies, one.width,
           elements<float>(one.to));
  }
}

}  // namespace ssm::cuda
