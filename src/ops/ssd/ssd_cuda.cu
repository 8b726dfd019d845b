// The forward of ssd on a GPU, by the recurrence: a block walks the tokens of one sequence and head (or of some of its
// channels). Single tokens have a kernel of their own, whose work is to read and write the states.
#include <algorithm>

#include "ops/ssd/ssd_cuda.cuh"

namespace ssm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kSsdThreads)
    forward_kernel(const SsdInputs<T> in, const SsdPlan plan, const int64_t* offsets, const int64_t* slots,
                   float* states, float* starts, const Rows<T> y) {
  extern __shared__ float4 shared[];
  __shared__ float delta[kSsdRun], decay[kSsdRun];
  auto* x = reinterpret_cast<float*>(shared);  // (kSsdRun, width)
  float* sums = x + kSsdRun * plan.width();    // (kSsdRun, tiles, warps, kSsdTile)
  const SsdPlace at(in, plan, blockIdx.x);
  const int64_t begin = offsets[at.sequence], end = offsets[at.sequence + 1];
  const int64_t span = starts ? first_span(offsets, at.sequence) : 0;
  if (begin == end) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = plan.tiles * plan.warps();
  float S[kSsdTile] = {};
  float* state = states ? states + (slots[at.sequence] * in.m + at.head) * in.n * in.p : nullptr;
  if (state) load_states(in, at, state, S);

  for (int64_t t = begin; t < end; t += kSsdRun) {
    const int count = static_cast<int>(min(end - t, static_cast<int64_t>(kSsdRun)));
    if (starts && (t - begin) % kSsdSpan == 0)
      store_states(in, at, starts + ((span + (t - begin) / kSsdSpan) * in.m + at.head) * in.n * in.p, S);
    stage_steps(in, at, t, count, delta, decay);
    stage_channels(in, plan, at, in.x, t, count, x);
    __syncthreads();  // the run is there
#pragma unroll 1
    for (int group = 0; group < count; group += kSsdGroup) {
      float B[kSsdGroup], C[kSsdGroup];
      load_group(in.B, at, t + group, count - group, B);
      load_group(in.C, at, t + group, count - group, C);
#pragma unroll
      for (int i = 0; i < kSsdGroup; ++i) {
        const int token = group + i;
        float inputs[kSsdTile], products[kSsdTile];
        load_tile(x + token * plan.width() + at.tile * kSsdTile, inputs);
        advance(S, decay[token], delta[token] * B[i], inputs);
#pragma unroll
        for (int j = 0; j < kSsdTile; ++j) products[j] = C[i] * S[j];
        const float sum = sum_states(products);
        if (lane % 2 == 0) sums[(token * warps + warp) * kSsdTile + lane / 2] = sum;
      }
    }
    __syncthreads();  // the warps' sums are there
    for (int i = static_cast<int>(threadIdx.x); i < count * plan.width(); i += plan.threads()) {
      const int token = i / plan.width(), channel = i % plan.width();
      if (at.first + channel >= in.p) continue;
      const float* mine = sums + (token * warps + channel / kSsdTile * plan.warps()) * kSsdTile + channel % kSsdTile;
      float sum = in.D_at(at.head, at.first + channel) * x[i];  // (3)
      for (int other = 0; other < plan.warps(); ++other) sum += mine[other * kSsdTile];
      y[t + token][at.head * in.p + at.first + channel] = from_float<T>(sum);
    }
    __syncthreads();  // the run may be overwritten
  }
  if (state) store_states(in, at, state, S);
}

// One token a sequence: threads are packs of channels times rows of states.
constexpr int kStepThreads = 256, kStepLoads = 8;

template <class T, int kPack>
__global__ void __launch_bounds__(kStepThreads)
    step_kernel(const SsdInputs<T> in, const int64_t* slots, float* states, const Rows<T> y) {
  __shared__ float sums[kStepThreads * kPack];
  wait_for_previous_kernels();
  const int64_t head = blockIdx.x, t = blockIdx.y;
  const int64_t packs = in.p / kPack;
  const int columns = static_cast<int>(min(packs, static_cast<int64_t>(kStepThreads))), lines = kStepThreads / columns;
  const int column = static_cast<int>(threadIdx.x) % columns, line = static_cast<int>(threadIdx.x) / columns;
  const float delta = in.delta(t, head), decay = expf(delta * in.decay_rate(head));
  const T* B = in.B[t] + head / (in.m / in.g) * in.n;
  const T* C = in.C[t] + head / (in.m / in.g) * in.n;
  const T* x = in.x[t] + head * in.p;
  float* state = states + (slots[t] * in.m + head) * in.n * in.p;
  for (int64_t first = 0; first < packs; first += columns) {
    const int64_t channel = (first + column) * kPack;
    const bool mine = line < lines && first + column < packs;
    float sum[kPack] = {}, inputs[kPack] = {};
    if (mine) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) inputs[i] = delta * to_float(x[channel + i]);
      for (int64_t from = line; from < in.n; from += kStepLoads * lines) {
        float S[kStepLoads][kPack];  // all are asked for before the first is written
#pragma unroll
        for (int i = 0; i < kStepLoads; ++i)
          if (from + i * lines < in.n) load_floats<kPack>(state + (from + i * lines) * in.p + channel, S[i]);
#pragma unroll
        for (int i = 0; i < kStepLoads; ++i) {
          const int64_t k = from + i * lines;
          if (k >= in.n) break;
          const float b = to_float(B[k]), c = to_float(C[k]);
#pragma unroll
          for (int j = 0; j < kPack; ++j) {
            S[i][j] = fmaf(decay, S[i][j], b * inputs[j]);  // (2)
            sum[j] = fmaf(c, S[i][j], sum[j]);
          }
          store_floats<kPack>(state + k * in.p + channel, S[i]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) sums[threadIdx.x * kPack + j] = sum[j];
    __syncthreads();  // the lines' sums are there
    for (int i = static_cast<int>(threadIdx.x); i < columns * kPack; i += kStepThreads) {
      const int64_t at = first * kPack + i;
      if (at >= in.p) break;
      float total = in.D_at(head, at) * to_float(x[at]);  // (3)
      for (int other = 0; other < lines; ++other) total += sums[other * columns * kPack + i];
      y[t][head * in.p + at] = from_float<T>(total);
    }
    __syncthreads();  // they may be overwritten
  }
}

template <class T>
void run(const SsdForward& args, Stream stream) {
  const Seqs& seqs = *args.seqs;
  const SsdInputs<T> in(args);
  const Seqs::Tables& tables = seqs.tables(args.x.device());
  const auto *offsets = elements<int64_t>(tables.offsets), *slots = elements<int64_t>(tables.slots);
  auto *state = elements<float>(args.state), *starts = elements<float>(args.starts);
  const auto y = rows<T>(args.y);
  const bool single = seqs.longest == 1 && seqs.tokens() == seqs.count();
  if (single && state && !starts) {
    const dim3 grid(static_cast<unsigned>(in.m), static_cast<unsigned>(seqs.count()));
    launch("ssd", in.p % 4 == 0 ? step_kernel<T, 4> : step_kernel<T, 1>, grid, kStepThreads,
           LaunchOptions{.early = true}, stream, in, slots, state, y);
    return;
  }
  const SsdPlan plan(in.n, in.p);
  const size_t shared = sizeof(float) * kSsdRun * kSsdTile * static_cast<size_t>(plan.tiles * (1 + plan.warps()));
  launch("ssd", forward_kernel<T>, static_cast<unsigned>(seqs.count() * in.m * plan.parts),
         static_cast<unsigned>(plan.threads()), LaunchOptions{.shared = shared}, stream, in, plan, offsets, slots,
         state, starts, y);
}

}  // namespace

void ssd_forward(const SsdForward& args, Stream stream) {
  with_element(args.x.dtype(), "ssd", [&]<class T>(T) { run<T>(args, stream); });
}

}  // namespace ssm::cuda
