// One token, or a few, of each sequence: the state is read and written in place, and nothing else is of its size, so a
// step takes as long as that traffic. Also the decay rates that whoever decodes keeps between steps.
#include "core/cuda_kernel.cuh"
#include "ops/selective_scan/selective_scan_math.cuh"
#include "ops/selective_scan/selective_scan_step.cuh"
#include "ops/tensor_core.cuh"

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
  bool early;  // nobody in front has written the state
  // Where dt comes as factors: dt is (t, r) then.
  const T* dt_weight;  // (e, r) or null
  int64_t dt_weight_stride, r;
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

constexpr int kSingleThreads = 128;

// 16 bytes to this thread's own place in shared memory, in the background: no register waits for them.
__device__ __forceinline__ void order(void* to, const float* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

// Until all but the last `pending` groups are there; a constant once its loop is unrolled.
__device__ __forceinline__ void await(int pending) {
  if (pending == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
  if (pending == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
  if (pending == 2) asm volatile("cp.async.wait_group 2;" ::: "memory");
  if (pending == 3) asm volatile("cp.async.wait_group 3;" ::: "memory");
}

// dt for the 8 channels a warp begins at `channel` and the sequences of the block, which begin at `first`: to (rows of
// kDtPitch), f32. Weights are the operand with 8 columns, as in ops/linear for few rows; a lane's pieces of 16 bytes
// are neighbours, since a sum may take its columns in any order.
constexpr int kMostRank = 160, kRankSteps = kMostRank / 32, kDtPitch = 36;
template <class T>
struct StepSizes {
  uint4 w[kRankSteps];
  int column;

  __device__ __forceinline__ StepSizes(const StepArguments<T>& args, int64_t channel)
      : column(static_cast<int>(threadIdx.x % 4 * 8)) {
    const T* row = args.dt_weight + min(channel + threadIdx.x % 32 / 4, args.e - 1) * args.dt_weight_stride;
#pragma unroll
    for (int i = 0; i < kRankSteps; ++i) w[i] = piece(row, i, args.r);
  }
  __device__ __forceinline__ uint4 piece(const T* row, int i, int64_t r) const {
    return column + i * 32 < r ? *reinterpret_cast<const uint4*>(row + column + i * 32) : make_uint4(0, 0, 0, 0);
  }
  template <int kRows>
  __device__ __forceinline__ void multiply(const StepArguments<T>& args, int64_t first, float* to) const {
    const int64_t lower = first + threadIdx.x % 32 / 4, upper = lower + 8;
    uint4 a[kRankSteps][2];
#pragma unroll
    for (int i = 0; i < kRankSteps; ++i) {
      a[i][0] = lower < args.sequences ? piece(args.dt[lower], i, args.r) : make_uint4(0, 0, 0, 0);
      a[i][1] = kRows > 8 && upper < args.sequences ? piece(args.dt[upper], i, args.r) : make_uint4(0, 0, 0, 0);
    }
    float sum[2][4] = {};
#pragma unroll
    for (int i = 0; i < kRankSteps; ++i) {
      multiply_add<T>(sum[0], a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y, w[i].x, w[i].y);
      multiply_add<T>(sum[1], a[i][0].z, a[i][1].z, a[i][0].w, a[i][1].w, w[i].z, w[i].w);
    }
    float* row = to + threadIdx.x % 32 / 4 * kDtPitch + threadIdx.x % 4 * 2;
    if (kRows >= 8 || threadIdx.x % 32 / 4 < kRows) {
      row[0] = sum[0][0] + sum[1][0];
      row[1] = sum[0][1] + sum[1][1];
    }
    if (kRows > 8) {
      row[8 * kDtPitch] = sum[0][2] + sum[1][2];
      row[8 * kDtPitch + 1] = sum[0][3] + sum[1][3];
    }
  }
};

// The same for one token each, 16 states and kSequences sequences a warp. All their states are on their way before the
// first is used, and before the kernels in front have ended: those wrote activations, not states. A block has 32
// channels; with kFactors it begins by multiplying dt for them.
template <class T, int kSequences, bool kFactors>
__global__ void __launch_bounds__(kSingleThreads, kSequences == 4 ? 4 : 5)
    scan_single_kernel(const __grid_constant__ StepArguments<T> args) {
  constexpr int kVector = 4, kWarps = kSingleThreads / kWidth, kRows = kWarps * kSequences;
  __shared__ float4 ahead[kSequences][kDeep][kSingleThreads];
  __shared__ float4 product[kFactors ? kRows * kDtPitch / 4 : 1];
  let_next_kernel_start();
  if (!args.early) wait_for_previous_kernels();
  const int warp = threadIdx.x / kWidth, lane = threadIdx.x % kWidth, first = lane / (kWidth / kParts) * kDeep;
  const int64_t e = args.e, block_s = blockIdx.y * int64_t{kRows}, first_s = block_s + warp * kSequences;
  const int64_t block_c = blockIdx.x * int64_t{kWidth}, c = block_c + lane % (kWidth / kParts) * kVector;
  const int count = c < e ? static_cast<int>(max(int64_t{0}, min(int64_t{kSequences}, args.sequences - first_s))) : 0;
  int slot[kSequences] = {};
  const auto state = [&](int k) { return args.h + (slot[k] * int64_t{kParts * kDeep} + first) * e + c; };
#pragma unroll
  for (int k = 0; k < kSequences; ++k) {
    if (k < count) {
      slot[k] = static_cast<int>(args.slots[first_s + k]);
#pragma unroll
      for (int i = 0; i < kDeep; ++i) order(&ahead[k][i][threadIdx.x], state(k) + i * e);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  float rate[kDeep][kVector] = {}, bias[kVector] = {}, D[kVector] = {};
  if (count > 0) {
#pragma unroll
    for (int i = 0; i < kDeep; ++i) load_floats<kVector>(args.rates + (first + i) * e + c, rate[i]);
    if (args.dt_bias) load_floats<kVector>(args.dt_bias + c, bias);
    if (args.D) load_floats<kVector>(args.D + c, D);
  }
  if constexpr (kFactors) {
    const StepSizes<T> sizes(args, block_c + warp * 8);
    if (args.early) wait_for_previous_kernels();
    sizes.template multiply<kRows>(args, block_s, reinterpret_cast<float*>(product) + warp * 8);
  } else {
    if (args.early) wait_for_previous_kernels();
  }

  Pack<T, kVector> x[kSequences] = {}, dt[kSequences] = {}, z[kSequences] = {}, B[kSequences] = {}, C[kSequences] = {};
#pragma unroll
  for (int k = 0; k < kSequences; ++k) {
    if (k >= count) continue;
    const auto read = [](const T* from) { return *reinterpret_cast<const Pack<T, kVector>*>(from); };
    const int64_t t = first_s + k;
    x[k] = read(args.x[t] + c);
    if (!kFactors) dt[k] = read(args.dt[t] + c);
    if (args.z) z[k] = read(args.z[t] + c);
    B[k] = read(args.B[t] + first);
    C[k] = read(args.C[t] + first);
  }
  if constexpr (kFactors) __syncthreads();  // the block's dt is there
#pragma unroll
  for (int k = 0; k < kSequences; ++k) {
    await(kSequences - 1 - k);
    float delta[kVector], scaled[kVector], y[kVector] = {};
    if constexpr (kFactors)
      load_floats<kVector>(reinterpret_cast<const float*>(product) + (warp * kSequences + k) * kDtPitch +
                               lane % (kWidth / kParts) * kVector,
                           delta);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (!kFactors) delta[j] = to_float(dt[k].value[j]);
      delta[j] = softplus_fast(delta[j] + bias[j]);  // (9)
      scaled[j] = delta[j] * to_float(x[k].value[j]);
    }
#pragma unroll
    for (int i = 0; i < kDeep; ++i) {
      float now[kVector];
      load_floats<kVector>(reinterpret_cast<const float*>(&ahead[k][i][threadIdx.x]), now);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        now[j] = fmaf(exp2_fast(delta[j] * rate[i][j]), now[j], scaled[j] * to_float(B[k].value[i]));  // (10)
        y[j] = fmaf(to_float(C[k].value[i]), now[j], y[j]);                                            // (11)
      }
      if (k < count) store_floats<kVector>(state(k) + i * e, now);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
#pragma unroll
      for (int over = kWidth / kParts; over < kWidth; over *= 2) y[j] += __shfl_xor_sync(~0u, y[j], over);
      y[j] = fmaf(D[j], to_float(x[k].value[j]), y[j]);
      if (args.z) y[j] *= silu_fast(to_float(z[k].value[j]));  // (12)
    }
    if (first == 0 && k < count) store_floats<kVector>(args.out[first_s + k] + c, y);
  }
}

template <class T, int kSequences>
void start_singles(const StepArguments<T>& arguments, Stream stream) {
  constexpr int kRows = kSingleThreads / kWidth * kSequences;
  const dim3 grid(static_cast<unsigned>(divide_up(arguments.e, kWidth)),
                  static_cast<unsigned>(divide_up(arguments.sequences, kRows)));
  void (*kernel)(StepArguments<T>) = scan_single_kernel<T, kSequences, false>;
  if constexpr (!std::is_same_v<T, float>)
    if (arguments.dt_weight) kernel = scan_single_kernel<T, kSequences, true>;
  launch("selective_scan", kernel, grid, kSingleThreads, LaunchOptions{.early = true}, stream, arguments);
}

template <class T>
void start_singles(const StepArguments<T>& arguments, Stream stream) {
  // As many sequences a warp as leave every multiprocessor enough warps to fill memory's queue.
  const auto warps = [&](int each) { return divide_up(arguments.e, kWidth) * divide_up(arguments.sequences, each); };
  if (warps(4) >= 1536) return start_singles<T, 4>(arguments, stream);
  warps(2) >= 1024 ? start_singles<T, 2>(arguments, stream) : start_singles<T, 1>(arguments, stream);
}

// Whether each sequence has one token, and the kernel above takes it.
bool are_singles(const ScanForward& args) {
  const auto packs = [](const Tensor& tensor) { return aligned(tensor, 4 * bytes_of(tensor.dtype())); };
  return args.seqs->longest == 1 && args.seqs->tokens() == args.seqs->count() && !args.starts && args.h && args.rates &&
         args.B.size(1) == kParts * kDeep && args.x.size(1) % 4 == 0 && args.seqs->count() <= 4 * 65535 &&
         packs(args.x) && (args.dt_weight || packs(args.dt)) && (!args.z || packs(args.z)) && packs(args.B) &&
         packs(args.C) && packs(args.out) && aligned(args.h, 16) && aligned(args.rates, 16) && aligned(args.D, 16) &&
         aligned(args.dt_bias, 16);
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
                                   .groups = groups,
                                   // A recorded graph is decoding: it advances a state once.
                                   .early = recording(args.x.device()),
                                   .dt_weight = elements<const T>(args.dt_weight),
                                   .dt_weight_stride = args.dt_weight ? args.dt_weight.stride(0) : 0,
                                   .r = args.dt_weight ? args.dt_weight.size(1) : 0};
  if (are_singles(args)) return start_singles(arguments, stream);
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

bool step_multiplies_dt(const ScanForward& args) {
  const int64_t r = args.dt.size(1);
  return are_singles(args) && args.x.dtype() != DType::f32 && args.dt_weight.dtype() == args.x.dtype() && r % 8 == 0 &&
         r <= kMostRank && aligned(args.dt, 16) && aligned(args.dt_weight, 16);
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
