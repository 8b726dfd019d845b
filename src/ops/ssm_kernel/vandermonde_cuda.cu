// The Vandermonde product of ssm_kernel on a GPU, lanes over channels. Forward a thread has a leap of taps in registers
// and meets all modes; backward it has a mode and runs down a range of leaps by Horner's rule, f32 within a leap and
// double between them. Equations: README.md.
#include <algorithm>

#include "ops/ssm_kernel/ssm_kernel_cuda.cuh"

namespace ssm::cuda {
namespace {

using Number = Complex<float>;
using Exact = Complex<double>;
constexpr int kLeap = 64;
constexpr int kLanes = 32, kLeaps = 4;    // of a block forward: channels, leaps
constexpr int kModes = 8;                 // of a block backward, each with its channels
constexpr int64_t kWantedThreads = 1024;  // of a multiprocessor, backward
constexpr int64_t kMostRanges = 1024;

__device__ __forceinline__ Exact one_plus(Exact z) { return {1 + z.re, z.im}; }
__device__ __forceinline__ Number rounded(Exact value) {
  return {static_cast<float>(value.re), static_cast<float>(value.im)};
}

__global__ void __launch_bounds__(kLanes* kLeaps)
    forward_kernel(ModeTable z, ModeTable b, ModeTable c, Rows<float> K, int64_t length) {
  const int64_t e = static_cast<int64_t>(blockIdx.y) * kLanes + threadIdx.x,
                leap = static_cast<int64_t>(blockIdx.x) * kLeaps + threadIdx.y, l = leap * kLeap;
  if (e >= z.e || l >= length) return;
  float taps[kLeap] = {};
  for (int64_t k = 0; k < z.n; ++k) {
    const Exact change = z.read(k, e), start = power(power(one_plus(change), kLeap), leap);
    Number q = rounded(b.read(k, e) * c.read(k, e) * start);
    const Number step = rounded(change);
#pragma unroll
    for (int i = 0; i < kLeap; ++i) {  // (2)
      taps[i] += q.re;
      q = q + step * q;
    }
  }
#pragma unroll
  for (int i = 0; i < kLeap; ++i)
    if (l + i < length) K[l + i][e] = taps[i];
}

// Of each range of `leaps` leaps: sums (ranges, n, e) of the two sums of (5) and (6), with powers of the whole.
__global__ void __launch_bounds__(kLanes* kModes)
    backward_kernel(ModeTable z, Rows<const float> dK, int64_t length, int64_t leaps, Exact* plain, Exact* weighted) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kLanes + threadIdx.x,
                k = static_cast<int64_t>(blockIdx.y) * kModes + threadIdx.y;
  if (e >= z.e || k >= z.n) return;
  const Exact change = conj(z.read(k, e)), a = one_plus(change), leap_power = power(a, kLeap);
  const Number step = rounded(change);
  const int64_t first = blockIdx.z * leaps, last = min(first + leaps, (length - 1 + kLeap - 1) / kLeap);
  Exact sum, weighted_sum;
  for (int64_t leap = last - 1; leap >= first; --leap) {
    const int64_t l = 1 + leap * kLeap;  // tap l has power l - 1
    const int taps = static_cast<int>(min(static_cast<int64_t>(kLeap), length - l));
    Number value, slope;  // of the polynomial of this leap, at a
#pragma unroll 8
    for (int i = taps - 1; i >= 0; --i) {
      const float gradient = dK[l + i][e];
      slope = slope + multiply_add(step, slope, value);
      value = value + multiply_add(step, value, Number{gradient, 0});
    }
    const Exact here{value.re, value.im}, inside = a * Exact{slope.re, slope.im};
    sum = multiply_add(leap_power, sum, here);
    weighted_sum = multiply_add(leap_power, weighted_sum, scale_add(static_cast<double>(l), here, inside));
  }
  const Exact before = power(leap_power, first);
  const int64_t at = (blockIdx.z * z.n + k) * z.e + e;
  plain[at] = before * sum;
  weighted[at] = before * weighted_sum;
}

__global__ void finish_kernel(ModeTable z, ModeTable b, ModeTable c, Rows<const float> dK, const Exact* plain,
                              const Exact* weighted, int64_t ranges, ModeTable dz, ModeTable db, ModeTable dc) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, count = z.n * z.e;
  if (i >= count) return;
  const int64_t k = i / z.e, e = i % z.e;
  Exact sum, weighted_sum;
  for (int64_t range = 0; range < ranges; ++range) {
    sum = sum + plain[range * count + i];
    weighted_sum = weighted_sum + weighted[range * count + i];
  }
  Exact dw = one_plus(conj(z.read(k, e))) * sum;  // (5)
  dw.re += dK[0][e];
  const Exact b_conj = conj(b.read(k, e)), c_conj = conj(c.read(k, e));
  dc.write(b_conj * dw, k, e);
  db.write(c_conj * dw, k, e);
  dz.write(b_conj * c_conj * weighted_sum, k, e);  // (6)
}

}  // namespace

void vandermonde_forward(const SsmKernelForward& args, Stream stream) {
  const int64_t length = args.K.size(0), e = args.K.size(1);
  const dim3 grid(static_cast<unsigned>(divide_up(divide_up(length, kLeap), kLeaps)),
                  static_cast<unsigned>(divide_up(e, kLanes)));
  launch("ssm_kernel", forward_kernel, grid, dim3(kLanes, kLeaps), stream, ModeTable(args.z), ModeTable(args.b),
         ModeTable(args.c), rows<float>(args.K), length);
}

void vandermonde_backward(const SsmKernelBackward& args, Stream stream) {
  const int64_t length = args.dK.size(0), n = args.z.size(1), e = args.z.size(2);
  if (n == 0) return;
  const Device device = args.dK.device();
  const int64_t threads = divide_up(e, kLanes) * kLanes * divide_up(n, kModes) * kModes;
  const int64_t all_leaps = std::max<int64_t>(1, divide_up(length - 1, kLeap));
  const int64_t wanted =
      std::clamp<int64_t>(divide_up(kWantedThreads * multiprocessors(device), threads), 1, kMostRanges);
  const int64_t leaps = divide_up(all_leaps, wanted), ranges = divide_up(all_leaps, leaps);
  const Tensor sums = Tensor::empty({2 * ranges, n, e, 2}, DType::f64, device);
  Exact* const plain = reinterpret_cast<Exact*>(elements<double>(sums));
  Exact* const weighted = plain + ranges * n * e;
  const dim3 grid(static_cast<unsigned>(divide_up(e, kLanes)), static_cast<unsigned>(divide_up(n, kModes)),
                  static_cast<unsigned>(ranges));
  launch("ssm_kernel", backward_kernel, grid, dim3(kLanes, kModes), stream, ModeTable(args.z),
         rows<const float>(args.dK), length, leaps, plain, weighted);
  constexpr int kThreads = 128;
  launch("ssm_kernel", finish_kernel, dim3(static_cast<unsigned>(divide_up(n * e, kThreads))), dim3(kThreads), stream,
         ModeTable(args.z), ModeTable(args.b), ModeTable(args.c), rows<const float>(args.dK), plain, weighted, ranges,
         ModeTable(args.dz), ModeTable(args.db), ModeTable(args.dc));
}

}  // namespace ssm::cuda
