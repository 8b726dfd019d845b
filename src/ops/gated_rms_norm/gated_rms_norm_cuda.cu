// gated_rms_norm and gate on a GPU: a row of threads for each group of each row, its elements in registers between the
// sum and the product, so that each number crosses the memory once. Groups that are misaligned or wider than 10,240
// take a version that reads them twice. Equations: gated_rms_norm.h, README.md.
#include "core/cuda_kernel.cuh"
#include "ops/gated_rms_norm/gated_rms_norm.h"
#include "ops/sigmoid.cuh"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

constexpr int kPack = 4;           // elements of an access
constexpr int kPacks = 4;          // accesses of a thread to each operand, all under way at once
constexpr int kBlock = 128;        // threads, unless a group needs more, up to
constexpr int kMostThreads = 640;  // leaves a thread 96 registers: with 80 they spill
constexpr int64_t kLongest = int64_t{kMostThreads} * kPack * kPacks;

struct Sizes {
  int64_t t, groups, width;
};

template <class T>
struct Forward {
  Rows<const T> y, z;
  const float* weight;  // null: no norm
  float eps;
  bool gate_first;
  Rows<T> out;
  float* scale;  // (t, groups)
  Sizes sizes;
};

__device__ __forceinline__ float scale_of(float squares, float eps, int64_t width) {
  return 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
}

// blockIdx.y is the group.
template <class T>
__global__ void __launch_bounds__(kMostThreads) forward_kernel(Forward<T> a) {
  __shared__ float scratch[kWarp];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y, group = blockIdx.y;
  const int64_t begin = group * a.sizes.width;
  const bool mine = row < a.sizes.t;
  float y[kPacks][kPack], z[kPacks][kPack], squares = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
    if (mine && c < a.sizes.width) {
      load_floats(a.y[row] + begin + c, y[i]);
      load_floats(a.z[row] + begin + c, z[i]);
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) y[i][j] = z[i][j] = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float v = y[i][j] * silu(z[i][j]), normed = a.gate_first ? v : y[i][j];
      squares = fmaf(normed, normed, squares);
      y[i][j] = v;
    }
  }
  float scale = 1;
  if (a.weight) {
    scale = scale_of(row_sum(squares, scratch), a.eps, a.sizes.width);
    if (mine && threadIdx.x == 0) a.scale[row * a.sizes.groups + group] = scale;
  }
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
    if (!mine || c >= a.sizes.width) continue;
    float weight[kPack] = {1, 1, 1, 1};
    if (a.weight) load_floats(a.weight + begin + c, weight);
#pragma unroll
    for (int j = 0; j < kPack; ++j) y[i][j] *= scale * weight[j];  // (1), (2) or (3)
    store_floats(a.out[row] + begin + c, y[i]);
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock) any_forward_kernel(Forward<T> a) {
  __shared__ float scratch[kWarp];
  const int64_t row = blockIdx.x / a.sizes.groups, begin = blockIdx.x % a.sizes.groups * a.sizes.width;
  const auto y = [&](int64_t c) { return to_float(a.y[row][begin + c]); };
  const auto gating = [&](int64_t c) { return silu(to_float(a.z[row][begin + c])); };
  float scale = 1;
  if (a.weight) {
    float squares = 0;
    for (int64_t c = threadIdx.x; c < a.sizes.width; c += kBlock) {
      const float normed = a.gate_first ? y(c) * gating(c) : y(c);
      squares = fmaf(normed, normed, squares);
    }
    scale = scale_of(row_sum(squares, scratch), a.eps, a.sizes.width);
    if (threadIdx.x == 0) a.scale[blockIdx.x] = scale;
  }
  for (int64_t c = threadIdx.x; c < a.sizes.width; c += kBlock)
    a.out[row][begin + c] = from_float<T>(y(c) * gating(c) * (scale * (a.weight ? a.weight[begin + c] : 1.0f)));
}

template <class T>
struct Gradients {
  Rows<const T> y, z, dout;
  const float *weight, *scale;  // null: no norm
  bool gate_first;
  Rows<T> dy, dz;  // may be null
  float* partial;  // (blocks, e): (8) over the rows of a block
  Sizes sizes;
};

// One element between what is read and what is written.
struct Element {
  float y, gating, slope, direct, normed, through;

  // `dout` is that of (4) times w. Returns the element's term of (4).
  __device__ __forceinline__ float begin(float y_value, float z, float dout, bool gate_first) {
    const float s = sigmoid(z);
    y = y_value;
    gating = z * s;
    slope = s * fmaf(z, 1.0f - s, 1.0f);
    through = dout;
    normed = gate_first ? y * gating : y;
    direct = gate_first ? dout : dout * gating;
    return dout * y * gating;
  }
  // (5), (6), (7)
  __device__ __forceinline__ void end(float scale, float shared, bool gate_first, float& dy, float& dz) const {
    const float dnormed = fmaf(direct, scale, -normed * shared);
    dy = gate_first ? dnormed * gating : dnormed;
    dz = (gate_first ? dnormed : through * scale) * y * slope;
  }
};

// blockIdx.y is the group; each row of threads takes rows at equal distances and keeps its part of (8) in registers.
template <class T>
__global__ void __launch_bounds__(kMostThreads) backward_kernel(Gradients<T> a) {
  __shared__ float scratch[2][kWarp];
  extern __shared__ float block_sums[];  // (blockDim.y, width)
  const int64_t group = blockIdx.y, begin = group * a.sizes.width, width = a.sizes.width;
  float dweight[kPacks][kPack] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  int turn = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < a.sizes.t; first += step, turn ^= 1) {
    const int64_t row = first + threadIdx.y;
    const bool mine = row < a.sizes.t;
    const float scale = mine && a.weight ? a.scale[row * a.sizes.groups + group] : 1.0f;
    // Kept as they came, and computed with twice: the results of the first time would fill the registers.
    Pack<T, kPack> y[kPacks], z[kPacks], dout[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
      if (!mine || c >= width) continue;
      y[i] = *reinterpret_cast<const Pack<T, kPack>*>(a.y[row] + begin + c);
      z[i] = *reinterpret_cast<const Pack<T, kPack>*>(a.z[row] + begin + c);
      dout[i] = *reinterpret_cast<const Pack<T, kPack>*>(a.dout[row] + begin + c);
    }
    float shared = 0;
    if (a.weight) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
        if (!mine || c >= width) continue;
        float weight[kPack];
        load_floats(a.weight + begin + c, weight);
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          const float product = to_float(dout[i].value[j]) * to_float(y[i].value[j]) * silu(to_float(z[i].value[j]));
          dweight[i][j] = fmaf(product, scale, dweight[i][j]);  // (8)
          dot = fmaf(product, weight[j], dot);                  // (4)
        }
      }
      shared = row_sum(dot, scratch[turn]) * scale * scale * scale / static_cast<float>(width);
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
      if (!mine || c >= width) continue;
      float weight[kPack] = {1, 1, 1, 1}, dy[kPack], dz[kPack];
      if (a.weight) load_floats(a.weight + begin + c, weight);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        Element element;
        element.begin(to_float(y[i].value[j]), to_float(z[i].value[j]), to_float(dout[i].value[j]) * weight[j],
                      a.gate_first);
        element.end(scale, shared, a.gate_first, dy[j], dz[j]);
      }
      if (a.dy) store_floats(a.dy[row] + begin + c, dy);
      if (a.dz) store_floats(a.dz[row] + begin + c, dz);
    }
  }
  if (!a.partial) return;
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int64_t c = (static_cast<int64_t>(i) * blockDim.x + threadIdx.x) * kPack;
    if (c < width) store_floats(block_sums + threadIdx.y * width + c, dweight[i]);
  }
  __syncthreads();
  for (int64_t c = threadIdx.y * blockDim.x + threadIdx.x; c < width; c += blockDim.x * blockDim.y) {
    float sum = 0;
    for (unsigned y = 0; y < blockDim.y; ++y) sum += block_sums[y * width + c];
    a.partial[blockIdx.x * width * a.sizes.groups + begin + c] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock) any_backward_kernel(Gradients<T> a) {
  __shared__ float scratch[kWarp];
  const int64_t row = blockIdx.x / a.sizes.groups, begin = blockIdx.x % a.sizes.groups * a.sizes.width;
  const float scale = a.weight ? a.scale[blockIdx.x] : 1.0f;
  Element element;
  const auto load = [&](int64_t c) {
    const float weight = a.weight ? a.weight[begin + c] : 1.0f;
    return element.begin(to_float(a.y[row][begin + c]), to_float(a.z[row][begin + c]),
                         to_float(a.dout[row][begin + c]) * weight, a.gate_first);
  };
  float shared = 0;
  if (a.weight) {
    float dot = 0;
    for (int64_t c = threadIdx.x; c < a.sizes.width; c += kBlock) dot += load(c);
    shared = row_sum(dot, scratch) * scale * scale * scale / static_cast<float>(a.sizes.width);
  }
  for (int64_t c = threadIdx.x; c < a.sizes.width; c += kBlock) {
    load(c);
    float dy, dz;
    element.end(scale, shared, a.gate_first, dy, dz);
    if (a.dy) a.dy[row][begin + c] = from_float<T>(dy);
    if (a.dz) a.dz[row][begin + c] = from_float<T>(dz);
  }
}

// (8) over blocks of kAnyRows rows: one thread a block and channel.
constexpr int64_t kAnyRows = 64;
template <class T>
__global__ void __launch_bounds__(kBlock) any_dweight_kernel(Gradients<T> a, int64_t blocks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x, e = a.sizes.groups * a.sizes.width;
  if (i >= blocks * e) return;
  const int64_t first = i / e * kAnyRows, c = i % e, group = c / a.sizes.width;
  float sum = 0;
  for (int64_t row = first; row < a.sizes.t && row < first + kAnyRows; ++row)
    sum = fmaf(to_float(a.dout[row][c]) * to_float(a.y[row][c]) * silu(to_float(a.z[row][c])),
               a.scale[row * a.sizes.groups + group], sum);
  a.partial[i] = sum;
}

// Threads of a group and groups (or rows) of a block.
dim3 block_for(int64_t width) {
  const auto across = static_cast<unsigned>(divide_up(width, kPack * kPacks * kWarp) * kWarp);
  return {across, across >= kBlock ? 1 : kBlock / across};
}

Sizes sizes_of(const Tensor& y, const Tensor& scale) {
  const int64_t groups = scale ? scale.size(1) : 1;
  return {.t = y.size(0), .groups = groups, .width = y.size(1) / groups};
}

bool fits(const Sizes& sizes, std::initializer_list<const Tensor*> tensors) {
  bool result = sizes.width % kPack == 0 && sizes.width <= kLongest;
  for (const Tensor* tensor : tensors) result = result && aligned(*tensor, kPack * bytes_of(tensor->dtype()));
  return result;
}

template <class T>
void forward(const GatedNormForward& args, Stream stream) {
  constexpr const char* kName = "gated_rms_norm";
  const Forward<T> a{.y = rows<const T>(args.y),
                     .z = rows<const T>(args.z),
                     .weight = elements<const float>(args.weight),
                     .eps = static_cast<float>(args.eps),
                     .gate_first = args.order == GateOrder::gate_first,
                     .out = rows<T>(args.out),
                     .scale = elements<float>(args.scale),
                     .sizes = sizes_of(args.y, args.scale)};
  const dim3 block = block_for(a.sizes.width);
  if (fits(a.sizes, {&args.y, &args.z, &args.out, &args.weight}))
    launch(kName, forward_kernel<T>,
           dim3(static_cast<unsigned>(divide_up(a.sizes.t, block.y)), static_cast<unsigned>(a.sizes.groups)), block,
           stream, a);
  else
    launch(kName, any_forward_kernel<T>, dim3(static_cast<unsigned>(a.sizes.t * a.sizes.groups)), kBlock, stream, a);
}

template <class T>
void backward(const GatedNormBackward& args, Stream stream) {
  constexpr const char* kName = "gated_rms_norm backward";
  const Device& device = args.y.device();
  Gradients<T> a{.y = rows<const T>(args.y),
                 .z = rows<const T>(args.z),
                 .dout = rows<const T>(args.dout),
                 .weight = elements<const float>(args.weight),
                 .scale = elements<const float>(args.scale),
                 .gate_first = args.order == GateOrder::gate_first,
                 .dy = rows<T>(args.dy),
                 .dz = rows<T>(args.dz),
                 .partial = nullptr,
                 .sizes = sizes_of(args.y, args.scale)};
  const auto [t, groups, width] = a.sizes;
  const int64_t e = groups * width;
  const bool fast = fits(a.sizes, {&args.y, &args.z, &args.dout, &args.dy, &args.dz, &args.weight});
  const dim3 block = block_for(width);
  const size_t shared = args.dweight ? static_cast<size_t>(width) * block.y * sizeof(float) : 0;
  // As many blocks as run at once: more would wait for a place, and leave more partial sums of (8) to add.
  const int64_t blocks =
      fast ? std::min(divide_up(t, block.y),
                      divide_up(resident_blocks(kName, backward_kernel<T>, block, shared, device), groups))
           : divide_up(t, kAnyRows);
  Tensor partial;
  if (args.dweight) partial = Tensor::empty({blocks, e}, DType::f32, device);
  a.partial = elements<float>(partial);
  if (fast) {
    launch(kName, backward_kernel<T>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(groups)), block,
           LaunchOptions{.shared = shared}, stream, a);
  } else {
    if (a.dy || a.dz) launch(kName, any_backward_kernel<T>, dim3(static_cast<unsigned>(t * groups)), kBlock, stream, a);
    if (a.partial)
      launch(kName, any_dweight_kernel<T>, dim3(static_cast<unsigned>(divide_up(blocks * e, kBlock))), kBlock, stream,
             a, blocks);
  }
  if (args.dweight) sum_parts(kName, partial, args.dweight, e, {}, 0, stream);
}

}  // namespace

void gated_rms_norm_forward(const GatedNormForward& args, Stream stream) {
  with_element(args.y.dtype(), "gated_rms_norm", [&]<class T>(T) { forward<T>(args, stream); });
}

void gated_rms_norm_backward(const GatedNormBackward& args, Stream stream) {
  with_element(args.y.dtype(), "gated_rms_norm", [&]<class T>(T) { backward<T>(args, stream); });
}

}  // namespace ssm::cuda
