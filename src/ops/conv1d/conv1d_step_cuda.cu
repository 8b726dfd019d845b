// One token a sequence on a GPU: a thread has four neighbouring channels of one sequence. What the kernels in front of
// it do not write, the state and the taps, is on its way before they have ended. Equations: conv1d.h, README.md.
#include "core/cuda_kernel.cuh"
#include "ops/conv1d/conv1d_step.cuh"
#include "ops/sigmoid.cuh"

namespace ssm::cuda {
namespace {

constexpr int kTaps = 4, kCarried = kTaps - 1, kChannels = 4, kThreads = 128;

template <class T>
struct Step {
  Rows<const T> x;
  Rows<T> y;
  const float *weight, *bias;  // (e, w), (e) or null
  const float* state;          // (slots, carried, e) or null
  float* new_state;            // may be the same, or null
  const int64_t* slots;
  int64_t e;
  bool silu, early;  // early: nobody in front has written the state
};

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(const __grid_constant__ Step<T> a) {
  let_next_kernel_start();
  if (!a.early) wait_for_previous_kernels();
  const int64_t c = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * kChannels, s = blockIdx.y;
  if (c >= a.e) return wait_for_previous_kernels();
  float window[kTaps][kChannels] = {}, weight[kChannels][kTaps], y[kChannels] = {};
  const int64_t slot = a.slots[s] * kCarried * a.e + c;
  if (a.state)
#pragma unroll
    for (int i = 0; i < kCarried; ++i) load_floats(a.state + slot + i * a.e, window[i]);
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
    load_floats(a.weight + (c + j) * kTaps, weight[j]);
    if (a.bias) y[j] = a.bias[c + j];
  }
  if (a.early) wait_for_previous_kernels();
  load_floats(a.x[s] + c, window[kCarried]);
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) y[j] = fmaf(weight[j][k], window[k][j], y[j]);  // (2)
    if (a.silu) y[j] *= sigmoid(y[j]);                                              // (3)
  }
  store_floats(a.y[s] + c, y);
  if (a.new_state)
#pragma unroll
    for (int i = 0; i < kCarried; ++i) store_floats(a.new_state + slot + i * a.e, window[i + 1]);  // (4)
}

}  // namespace

void conv1d_step(const Conv1dForward& args, Stream stream) {
  const int64_t e = args.x.size(1);
  const dim3 grid(static_cast<unsigned>(divide_up(e, kThreads * kChannels)), static_cast<unsigned>(args.seqs.count()));
  with_element(args.x.dtype(), "conv1d", [&]<class T>(T) {
    const Step<T> step{.x = rows<const T>(args.x),
                       .y = rows<T>(args.y),
                       .weight = elements<const float>(args.weight),
                       .bias = elements<const float>(args.bias),
                       .state = elements<const float>(args.state),
                       .new_state = elements<float>(args.new_state),
                       .slots = elements<const int64_t>(args.seqs.tables(args.x.device()).slots),
                       .e = e,
                       .silu = args.activation == Activation::silu,
                       // A recorded graph is decoding: it advances a state once.
                       .early = recording(args.x.device())};
    launch("conv1d", step_kernel<T>, grid, kThreads, LaunchOptions{.early = true}, stream, step);
  });
}

}  // namespace ssm::cuda
