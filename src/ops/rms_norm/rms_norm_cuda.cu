// rms_norm on a GPU: a row of threads a row, its elements in registers between the sum and the product, so that each
// number crosses the memory once. Rows that are misaligned or longer than 10,240 take a version that reads them twice.
// Equations: rms_norm.h, README.md.
#include "core/cuda_kernel.cuh"
#include "ops/rms_norm/rms_norm.h"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

constexpr int kPack = 4;           // elements of an access: 16 bytes of f32
constexpr int kPacks = 4;          // accesses of a thread, all under way at once
constexpr int kBlock = 128;        // threads, unless a row needs more, up to
constexpr int kMostThreads = 640;  // leaves a thread 96 registers: with 80 they spill
constexpr int64_t kFewRows = 128;  // up to as many a row has a thread for each access
constexpr int64_t kLongest = int64_t{kMostThreads} * kPack * kPacks;

template <class T>
struct Forward {
  Rows<const T> x, residual_as_x;
  Rows<const float> wide_x, residual;  // the first or x; the second or residual_as_x or neither
  const float* weight;
  float eps;
  Rows<T> y, kept;
  Rows<float> sum;
  float* scale;
  int64_t t, d;
  bool early;  // nobody in front has written the weight
};

// r of (1), kCount neighbours.
template <int kCount, class T>
__device__ __forceinline__ void load_sum(const Forward<T>& a, int64_t row, int64_t c, float (&r)[kCount]) {
  if (a.x)
    load_floats(a.x[row] + c, r);
  else
    load_floats(a.wide_x[row] + c, r);
  if (!a.residual && !a.residual_as_x) return;
  float more[kCount];
  if (a.residual)
    load_floats(a.residual[row] + c, more);
  else
    load_floats(a.residual_as_x[row] + c, more);
#pragma unroll
  for (int j = 0; j < kCount; ++j) r[j] += more[j];
}

// kPacks accesses a thread. A row's only one leaves registers for the weights, which are read ahead.
template <class T, int kPacks>
__global__ void __launch_bounds__(kMostThreads) forward_kernel(Forward<T> a) {
  __shared__ float scratch[kWarp];
  let_next_kernel_start();
  if (!a.early) wait_for_previous_kernels();
  float weight[kPacks][kPack];
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
#pragma unroll
    for (int j = 0; j < kPack; ++j) weight[i][j] = 1;
    if (kPacks == 1 && a.weight && c < a.d) load_floats(a.weight + c, weight[i]);
  }
  if (a.early) wait_for_previous_kernels();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool mine = row < a.t;
  float r[kPacks][kPack], squares = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
    if (mine && c < a.d) {
      load_sum(a, row, c, r[i]);
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) r[i][j] = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
    if (a.sum && mine && c < a.d) store_floats(a.sum[row] + c, r[i]);
    if (a.kept && mine && c < a.d) store_floats(a.kept[row] + c, r[i]);
#pragma unroll
    for (int j = 0; j < kPack; ++j) squares = fmaf(r[i][j], r[i][j], squares);
  }
  const float scale = 1.0f / sqrtf(row_sum(squares, scratch) / static_cast<float>(a.d) + a.eps);
  if (!mine) return;
  if (threadIdx.x == 0) a.scale[row] = scale;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
    if (c >= a.d) continue;
    if (kPacks > 1 && a.weight) load_floats(a.weight + c, weight[i]);
#pragma unroll
    for (int j = 0; j < kPack; ++j) r[i][j] *= scale * weight[i][j];  // (2)
    store_floats(a.y[row] + c, r[i]);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock) any_forward_kernel(Forward<T> a) {
  __shared__ float scratch[kWarp];
  const int64_t row = blockIdx.x;
  float squares = 0, r[1];
  for (int64_t c = threadIdx.x; c < a.d; c += kBlock) {
    load_sum(a, row, c, r);
    if (a.sum) a.sum[row][c] = r[0];
    if (a.kept) a.kept[row][c] = from_float<T>(r[0]);
    squares = fmaf(r[0], r[0], squares);
  }
  const float scale = 1.0f / sqrtf(row_sum(squares, scratch) / static_cast<float>(a.d) + a.eps);
  if (threadIdx.x == 0) a.scale[row] = scale;
  for (int64_t c = threadIdx.x; c < a.d; c += kBlock) {
    load_sum(a, row, c, r);
    a.y[row][c] = from_float<T>(r[0] * (scale * (a.weight ? a.weight[c] : 1.0f)));
  }
}

template <class T>
struct Gradients {
  Rows<const float> sum;
  Rows<const T> kept;  // this or sum
  const float *weight, *scale;
  Rows<const T> dy;
  Rows<const float> dsum;  // may be null, as the outputs
  Rows<T> dx;
  Rows<float> dresidual;
  float* partial;  // (blocks, d): (4) over the rows of a block
  int64_t t, d;
};

// r of (1), kCount neighbours.
template <int kCount, class T>
__device__ __forceinline__ void load_sum(const Gradients<T>& a, int64_t row, int64_t c, float (&r)[kCount]) {
  if (a.kept)
    load_floats(a.kept[row] + c, r);
  else
    load_floats(a.sum[row] + c, r);
}
template <class T>
__device__ __forceinline__ float sum_at(const Gradients<T>& a, int64_t row, int64_t c) {
  return a.kept ? to_float(a.kept[row][c]) : a.sum[row][c];
}

// Each row of threads takes every so-manieth row of the matrix and keeps its part of (4) in registers.
template <class T>
__global__ void __launch_bounds__(kMostThreads) backward_kernel(Gradients<T> a) {
  __shared__ float scratch[2][kWarp];
  extern __shared__ float block_sums[];  // (blockDim.y, d)
  float dweight[kPacks][kPack] = {};
  // dy times w, from what was read: kept as it came, or the registers are full.
  const auto weighted = [&](const Pack<T, kPack>& dy, int64_t c, float(&g)[kPack]) {
    float weight[kPack] = {1, 1, 1, 1};
    if (a.weight) load_floats(a.weight + c, weight);
#pragma unroll
    for (int j = 0; j < kPack; ++j) g[j] = to_float(dy.value[j]) * weight[j];
  };
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  int turn = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < a.t; first += step, turn ^= 1) {
    const int64_t row = first + threadIdx.y;
    const bool mine = row < a.t;
    const float scale = mine ? a.scale[row] : 0.0f;
    float r[kPacks][kPack], dsum[kPacks][kPack];
    Pack<T, kPack> dy[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
#pragma unroll
      for (int j = 0; j < kPack; ++j) dsum[i][j] = 0;
      if (!mine || c >= a.d) continue;
      load_sum(a, row, c, r[i]);
      dy[i] = *reinterpret_cast<const Pack<T, kPack>*>(a.dy[row] + c);
      if (a.dsum) load_floats(a.dsum[row] + c, dsum[i]);
    }
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
      if (!mine || c >= a.d) continue;
      float g[kPack];
      weighted(dy[i], c, g);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        dweight[i][j] = fmaf(to_float(dy[i].value[j]) * scale, r[i][j], dweight[i][j]);  // (4)
        dot = fmaf(g[j], r[i][j], dot);
      }
    }
    dot = row_sum(dot, scratch[turn]);
    const float shared = dot * scale * scale * scale / static_cast<float>(a.d);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
      if (!mine || c >= a.d) continue;
      float g[kPack];
      weighted(dy[i], c, g);
#pragma unroll
      for (int j = 0; j < kPack; ++j) g[j] = fmaf(g[j], scale, fmaf(-r[i][j], shared, dsum[i][j]));  // (3)
      if (a.dx) store_floats(a.dx[row] + c, g);
      if (a.dresidual) store_floats(a.dresidual[row] + c, g);
    }
  }
  if (!a.partial) return;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
    if (c < a.d) store_floats(block_sums + threadIdx.y * a.d + c, dweight[i]);
  }
  __syncthreads();
  for (int64_t c = threadIdx.y * blockDim.x + threadIdx.x; c < a.d; c += blockDim.x * blockDim.y) {
    float sum = 0;
    for (unsigned y = 0; y < blockDim.y; ++y) sum += block_sums[y * a.d + c];
    a.partial[blockIdx.x * a.d + c] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock) any_backward_kernel(Gradients<T> a) {
  __shared__ float scratch[kWarp];
  const int64_t row = blockIdx.x;
  const float scale = a.scale[row];
  const auto g = [&](int64_t c) { return to_float(a.dy[row][c]) * (a.weight ? a.weight[c] : 1.0f); };
  float dot = 0;
  for (int64_t c = threadIdx.x; c < a.d; c += kBlock) dot = fmaf(g(c), sum_at(a, row, c), dot);
  const float shared = row_sum(dot, scratch) * scale * scale * scale / static_cast<float>(a.d);
  for (int64_t c = threadIdx.x; c < a.d; c += kBlock) {
    const float dr = fmaf(g(c), scale, fmaf(-sum_at(a, row, c), shared, a.dsum ? a.dsum[row][c] : 0.0f));
    if (a.dx) a.dx[row][c] = from_float<T>(dr);
    if (a.dresidual) a.dresidual[row][c] = dr;
  }
}

// (4) over blocks of kAnyRows rows: one thread a block and channel.
constexpr int64_t kAnyRows = 64;
template <class T>
__global__ void __launch_bounds__(kBlock) any_dweight_kernel(Gradients<T> a, int64_t blocks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= blocks * a.d) return;
  const int64_t first = i / a.d * kAnyRows, c = i % a.d;
  float sum = 0;
  for (int64_t row = first; row < a.t && row < first + kAnyRows; ++row)
    sum = fmaf(to_float(a.dy[row][c]) * a.scale[row], sum_at(a, row, c), sum);
  a.partial[i] = sum;
}

// Threads of a row and rows of a block.
dim3 block_for(int64_t d, int64_t packs = kPacks) {
  const auto across = static_cast<unsigned>(divide_up(d, kPack * packs * kWarp) * kWarp);
  return {across, across >= kBlock ? 1 : kBlock / across};
}

template <class T>
void forward(const RmsNormForward& args, Stream stream) {
  constexpr const char* kName = "rms_norm";
  const bool as_x = args.residual && args.residual.dtype() != DType::f32;
  const bool wide = args.x.dtype() != args.y.dtype();
  const Forward<T> a{.x = wide ? Rows<const T>{} : rows<const T>(args.x),
                     .residual_as_x = as_x ? rows<const T>(args.residual) : Rows<const T>{},
                     .wide_x = wide ? rows<const float>(args.x) : Rows<const float>{},
                     .residual = as_x ? Rows<const float>{} : rows<const float>(args.residual),
                     .weight = elements<const float>(args.weight),
                     .eps = static_cast<float>(args.eps),
                     .y = rows<T>(args.y),
                     .kept = rows<T>(args.kept),
                     .sum = rows<float>(args.sum),
                     .scale = elements<float>(args.scale),
                     .t = args.x.size(0),
                     .d = args.x.size(1),
                     .early = recording(args.x.device())};
  const int64_t y_bytes = kPack * bytes_of(args.y.dtype());
  // Few rows leave most of the GPU alone: then a row has all the threads it can use.
  const bool few = a.t <= kFewRows && a.d <= int64_t{kMostThreads} * kPack;
  const dim3 block = block_for(a.d, few ? 1 : kPacks);
  if (a.d % kPack == 0 && a.d <= kLongest && aligned(args.x, wide ? 16 : y_bytes) && aligned(args.y, y_bytes) &&
      aligned(args.residual, as_x ? y_bytes : 16) && aligned(args.sum, 16) && aligned(args.kept, y_bytes) &&
      aligned(args.weight, 16))
    launch(kName, few ? forward_kernel<T, 1> : forward_kernel<T, kPacks>,
           dim3(static_cast<unsigned>(divide_up(a.t, block.y))), block, LaunchOptions{.early = true}, stream, a);
  else
    launch(kName, any_forward_kernel<T>, dim3(static_cast<unsigned>(a.t)), kBlock, stream, a);
}

template <class T>
void backward(const RmsNormBackward& args, Stream stream) {
  constexpr const char* kName = "rms_norm backward";
  const Device& device = args.sum.device();
  const int64_t t = args.sum.size(0), d = args.sum.size(1);
  const bool kept = args.sum.dtype() != DType::f32;
  Gradients<T> a{.sum = kept ? Rows<const float>{} : rows<const float>(args.sum),
                 .kept = kept ? rows<const T>(args.sum) : Rows<const T>{},
                 .weight = elements<const float>(args.weight),
                 .scale = elements<const float>(args.scale),
                 .dy = rows<const T>(args.dy),
                 .dsum = rows<const float>(args.dsum),
                 .dx = rows<T>(args.dx),
                 .dresidual = rows<float>(args.dresidual),
                 .partial = nullptr,
                 .t = t,
                 .d = d};
  const int64_t x_bytes = kPack * bytes_of(args.dy.dtype());
  const bool fast = d % kPack == 0 && d <= kLongest && aligned(args.sum, kept ? x_bytes : 16) &&
                    aligned(args.dy, x_bytes) && aligned(args.dsum, 16) && aligned(args.dx, x_bytes) &&
                    aligned(args.dresidual, 16) && aligned(args.weight, 16);
  const dim3 block = block_for(d);
  const size_t shared = args.dweight ? static_cast<size_t>(d) * block.y * sizeof(float) : 0;
  // As many blocks as run at once: more would wait for a place, and leave more partial sums of (4) to add.
  const int64_t blocks =
      fast ? std::min(divide_up(t, block.y), resident_blocks(kName, backward_kernel<T>, block, shared, device))
           : divide_up(t, kAnyRows);
  Tensor partial;
  if (args.dweight) partial = Tensor::empty({blocks, d}, DType::f32, device);
  a.partial = elements<float>(partial);
  if (fast) {
    launch(kName, backward_kernel<T>, dim3(static_cast<unsigned>(blocks)), block, LaunchOptions{.shared = shared},
           stream, a);
  } else {
    if (a.dx || a.dresidual) launch(kName, any_backward_kernel<T>, dim3(static_cast<unsigned>(t)), kBlock, stream, a);
    if (a.partial)
      launch(kName, any_dweight_kernel<T>, dim3(static_cast<unsigned>(divide_up(blocks * d, kBlock))), kBlock, stream,
             a, blocks);
  }
  if (args.dweight) sum_parts(kName, partial, args.dweight, d, {}, 0, stream);
}

}  // namespace

void rms_norm_forward(const RmsNormForward& args, Stream stream) {
  with_element(args.y.dtype(), "rms_norm", [&]<class T>(T) { forward<T>(args, stream); });
}

void rms_norm_backward(const RmsNormBackward& args, Stream stream) {
  with_element(args.dy.dtype(), "rms_norm", [&]<class T>(T) { backward<T>(args, stream); });
}

}  // namespace ssm::cuda
