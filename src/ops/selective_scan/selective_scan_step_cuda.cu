// One token, or a few, of each sequence: the state is read and written in place, and nothing else is of its size, so a
// step takes as long as that traffic. Also the decay rates that whoever decodes keeps between steps.
#include "core/cuda_kernel.cuh"
#include "ops/selective_scan/selective_scan_math.cuh"
#include "ops/selective_scan/selective_scan_step.cuh"

namespace ssm::cuda {
namespace {

template <class T>
struct StepArguments {
  Rows<const T> x, dt, z, B, C;    // (t, e), (t, n)
  Rows<T> out;                     // (t, e)
  const float* A_log;              // (e, n)
  const float* rates;              // (n, e), or null
  const float *D, *dt_bias;        // (e)
  float* h;                        // (slots, n, e)
  const int64_t *offsets, *slots;  // offsets: null when every sequence has one token
  int64_t sequences, e, n, groups;
};

constexpr int kParts = 4;   // threads that share a channel's states
constexpr int kDeep = 4;    // states a thread has in flight
constexpr int kWidth = 32;  // threads a group of channels: a warp

// A warp owns 8 kVector channels of one sequence: lane % 8 says which kVector of them, lane / 8 which quarter of every
// 16 states. A row of the state is then read in pieces of 128 bytes, and 16 states' loads are in flight before the
// first is used.
template <class T, int kVector>
__global__ void __launch_bounds__(128) scan_step_kernel(const __grid_constant__ StepArguments<T> args) {
  let_next_kernel_start();
  wait_for_previous_kernels();
  const int64_t group = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / kWidth;
  const int lane = threadIdx.x % kWidth, part = lane / (kWidth / kParts);
  if (group >= args.groups * args.sequences) return;
  const int64_t s = group / args.groups, n = args.n, e = args.e;
  const int64_t c = (group % args.groups * (kWidth / kParts) + lane % (kWidth / kParts)) * kVector;
  const bool inside = c < e;  // kVector divides e
  float* h = args.h ? args.h + args.slots[s] * n * e + c : nullptr;
  float bias[kVector] = {}, D[kVector] = {};
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    if (inside && args.dt_bias) bias[j] = args.dt_bias[c + j];
    if (inside && args.D) D[j] = args.D[c + j];
  }
  // One token each: known without asking memory.
  const int64_t begin = args.offsets ? args.offsets[s] : s, end = args.offsets ? args.offsets[s + 1] : s + 1;
  for (int64_t t = begin; t < end; ++t) {
    float x[kVector] = {}, dt[kVector] = {}, z[kVector] = {}, y[kVector] = {};
    if (inside) {
      load_floats<kVector>(args.x[t] + c, x);
      load_floats<kVector>(args.dt[t] + c, dt);
      if (args.z) load_floats<kVector>(args.z[t] + c, z);
    }
    for (int64_t first = part * kDeep; first < n; first += kParts * kDeep) {
      float state[kDeep][kVector] = {}, rate[kDeep][kVector] = {}, B[kDeep] = {}, C[kDeep] = {};
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        const int64_t row = first + i;
        if (row >= n || !inside) continue;
        if (h) load_floats<kVector>(h + row * e, state[i]);
        if (args.rates) load_floats<kVector>(args.rates + row * e + c, rate[i]);
        B[i] = to_float(args.B[t][row]);
        C[i] = to_float(args.C[t][row]);
      }
      // Only here, so that the state's loads are under way before anything waits for dt's.
      float delta[kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j) delta[j] = softplus_fast(dt[j] + bias[j]);  // (9)
      if (!args.rates) {
#pragma unroll
        for (int i = 0; i < kDeep; ++i)
#pragma unroll
          for (int j = 0; j < kVector; ++j)
            if (first + i < n && inside) rate[i][j] = -kLog2E * expf(args.A_log[(c + j) * n + first + i]);
      }
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          state[i][j] = fmaf(exp2_fast(delta[j] * rate[i][j]), state[i][j], delta[j] * x[j] * B[i]);  // (10)
          y[j] = fmaf(C[i], state[i][j], y[j]);                                                       // (11)
        }
        if (h && inside && first + i < n) store_floats<kVector>(h + (first + i) * e, state[i]);
      }
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
#pragma unroll
      for (int over = kWidth / kParts; over < kWidth; over *= 2) y[j] += __shfl_xor_sync(~0u, y[j], over);
      y[j] = fmaf(D[j], x[j], y[j]);
      if (args.z) y[j] *= silu_fast(z[j]);  // (12)
    }
    if (part == 0 && inside) store_floats<kVector>(args.out[t] + c, y);
  }
}

template <class T, int kVector>
void step(const ScanForward& args, Stream stream) {
  const Seqs::Tables& tables = args.seqs->tables(args.x.device());
  const int64_t e = args.x.size(1), groups = divide_up(e, kWidth / kParts * kVector), sequences = args.seqs->count();
  const bool singles = args.seqs->longest == 1 && args.seqs->tokens() == sequences;
  const StepArguments<T> arguments{.x = rows<const T>(args.x),
                                   .dt = rows<const T>(args.dt),
                                   .z = rows<const T>(args.z),
                                   .B = rows<const T>(args.B),
                                   .C = rows<const T>(args.C),
                                   .out = rows<T>(args.out),
                                   .A_log = elements<const float>(args.A_log),
                                   .rates = elements<const float>(args.rates),
                                   .D = elements<const float>(args.D),
                                   .dt_bias = elements<const float>(args.dt_bias),
                                   .h = elements<float>(args.h),
                                   .offsets = singles ? nullptr : elements<const int64_t>(tables.offsets),
                                   .slots = elements<const int64_t>(tables.slots),
                                   .sequences = sequences,
                                   .e = e,
                                   .n = args.B.size(1),
                                   .groups = groups};
  // Blocks of one warp while that fills the GPU sooner than it ends.
  const int64_t warps = groups * sequences;
  const int block = warps > 2048 ? 128 : kWidth;
  launch("selective_scan", scan_step_kernel<T, kVector>, dim3(static_cast<unsigned>(divide_up(warps * kWidth, block))),
         dim3(static_cast<unsigned>(block)), LaunchOptions{.early = true}, stream, arguments);
}

__global__ void scan_rates_kernel(const float* A_log, float* rates, int64_t e, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < e * n) rates[i] = -kLog2E * expf(A_log[i % e * n + i / e]);
}

}  // namespace

void scan_rates(const Tensor& A_log, const Tensor& rates, Stream stream) {
  const int64_t e = A_log.size(0), n = A_log.size(1);
  launch("scan_rates", scan_rates_kernel, dim3(static_cast<unsigned>(divide_up(e * n, 256))), dim3(256), stream,
         elements<const float>(A_log), elements<float>(rates), e, n);
}

void selective_scan_step(const ScanForward& args, Stream stream) {
  const bool vectors = args.x.size(1) % 4 == 0 && aligned(args.x, 16) && aligned(args.dt, 16) && aligned(args.z, 16) &&
                       aligned(args.out, 16) && aligned(args.h, 16) && aligned(args.rates, 16);
  with_element(args.x.dtype(), "selective_scan", [&](auto element) {
    using T = decltype(element);
    vectors ? step<T, 4>(args, stream) : step<T, 1>(args, stream);
  });
}

}  // namespace ssm::cuda
