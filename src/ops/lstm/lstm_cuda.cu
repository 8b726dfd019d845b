// lstm on a GPU: a kernel for each row of the sequences, all sequences that have one at a time. A warp has one hidden
// channel: its four rows of weights meet the hidden states of eight sequences at once. Hidden states and cells go from
// row to row in f32, and the weights are f32. Equations: lstm.h, README.md.
#include <algorithm>

#include "core/cuda_kernel.cuh"
#include "ops/linear/gemm.h"
#include "ops/lstm/lstm.h"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

constexpr int kWarps = 4, kTogether = 8;  // channels a block; sequences that share a read of the weights

__device__ __forceinline__ float sigmoid(float a) { return 1 / (1 + expf(-a)); }

struct Sequences {
  const int64_t *offsets, *slots;
  int64_t count, e;
};

// h of the row before: (count, e) each, two that take turns, so that no block overwrites what another still reads.
template <class T>
struct Step {
  Rows<const T> x;
  const float* weight;  // (4 e, e)
  const float* bias;
  const float* h;  // of the row before
  float *new_h, *c;
  Rows<T> y;
  float *gates, *cells;  // (t, 4 e), (t, e) or null
};

// The sums of weights (4 e, e) rows k, e + k, .. times vectors, lane 0 has them all: sums[gate][sequence].
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) step_kernel(Sequences seqs, Step<T> step, int64_t row) {
  const int64_t e = seqs.e, k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp,
                first = static_cast<int64_t>(blockIdx.y) * kTogether;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (k >= e) return;
  float sums[4][kTogether] = {};
  for (int64_t i = lane; i < e; i += kWarp) {
    float w[4];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) w[gate] = step.weight[(gate * e + k) * e + i];
#pragma unroll
    for (int s = 0; s < kTogether; ++s) {
      const float h = first + s < seqs.count ? step.h[(first + s) * e + i] : 0;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) sums[gate][s] = fmaf(w[gate], h, sums[gate][s]);
    }
  }
  float mine[4] = {};  // lane s has those of sequence s
#pragma unroll
  for (int s = 0; s < kTogether; ++s)
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const float sum = warp_sum(sums[gate][s]);
      if (lane == s) mine[gate] = sum;
    }
  const int64_t s = first + lane;
  if (lane >= kTogether || s >= seqs.count) return;
  const int64_t t = seqs.offsets[s] + row;
  if (t >= seqs.offsets[s + 1]) {
    step.new_h[s * e + k] = step.h[s * e + k];
    return;
  }
#pragma unroll
  for (int gate = 0; gate < 4; ++gate)  // (1)
    mine[gate] += to_float(step.x[t][gate * e + k]) + (step.bias ? step.bias[gate * e + k] : 0);
  const float i = sigmoid(mine[0]), f = sigmoid(mine[1]), g = tanhf(mine[2]), o = sigmoid(mine[3]);  // (2)
  const float c = f * step.c[s * e + k] + i * g, h = o * tanhf(c);                                   // (3), (4)
  step.c[s * e + k] = c;
  step.new_h[s * e + k] = h;
  step.y[t][k] = from_float<T>(h);
  if (!step.gates) return;
  float* gates = step.gates + t * 4 * e;
  gates[k] = i, gates[e + k] = f, gates[2 * e + k] = g, gates[3 * e + k] = o;
  step.cells[t * e + k] = c;
}

template <class T>
struct BackwardStep {
  const float* weight;                   // (e, 4 e): transposed
  const float *gates, *cells, *first_c;  // first_c (slots, e) or null
  Rows<const T> dy;
  const float* da;  // (count, 4 e) of the row behind, ...
  float* new_da;    // ... and of this one
  float *dh, *dc;   // (count, e); dh: what reaches h of the last row from outside, then that of the first row's state
  Rows<T> dx;
};

// Row `row` of each sequence that has it; -1: what is left of dh for the state. dh of (7) comes from the row behind.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_step_kernel(Sequences seqs, BackwardStep<T> step, int64_t row) {
  const int64_t e = seqs.e, k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp,
                first = static_cast<int64_t>(blockIdx.y) * kTogether;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (k >= e) return;
  float sums[kTogether] = {};
  for (int64_t r = lane; r < 4 * e; r += kWarp) {
    const float w = step.weight[k * 4 * e + r];
#pragma unroll
    for (int s = 0; s < kTogether; ++s)
      if (first + s < seqs.count) sums[s] = fmaf(w, step.da[(first + s) * 4 * e + r], sums[s]);
  }
  float product = 0;
#pragma unroll
  for (int s = 0; s < kTogether; ++s) {
    const float sum = warp_sum(sums[s]);
    if (lane == s) product = sum;
  }
  const int64_t s = first + lane;
  if (lane >= kTogether || s >= seqs.count) return;
  const int64_t length = seqs.offsets[s + 1] - seqs.offsets[s], t = seqs.offsets[s] + row;
  if (row >= length) return;  // its da stays 0, as it began
  const int64_t here = s * e + k;
  const float dh = row + 1 < length ? product : step.dh[here];
  if (row < 0) {
    step.dh[here] = dh;
    return;
  }
  const float* gates = step.gates + t * 4 * e;
  const float i = gates[k], f = gates[e + k], g = gates[2 * e + k], o = gates[3 * e + k];
  const float squashed = tanhf(step.cells[t * e + k]), slope = dh + to_float(step.dy[t][k]);
  const float before = row > 0 ? step.cells[(t - 1) * e + k] : step.first_c ? step.first_c[seqs.slots[s] * e + k] : 0;
  const float dcell = step.dc[here] + slope * o * (1 - squashed * squashed);  // (5)
  const float da[4] = {dcell * g * i * (1 - i), dcell * before * f * (1 - f), dcell * i * (1 - g * g),
                       slope * squashed * o * (1 - o)};  // (6)
  step.dc[here] = dcell * f;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    step.new_da[s * 4 * e + gate * e + k] = da[gate];
    step.dx[t][gate * e + k] = from_float<T>(da[gate]);
  }
}

// Rows of sequences and rows of slots, either way; `slots` rows that are absent count as 0.
enum class Move { from_slots, to_slots };
template <Move kMove>
__global__ void move_kernel(Sequences seqs, float* sequences, float* slots) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, s = at / seqs.e, k = at % seqs.e;
  if (s >= seqs.count) return;
  if constexpr (kMove == Move::to_slots)
    slots[seqs.slots[s] * seqs.e + k] = sequences[at];
  else
    sequences[at] = slots ? slots[seqs.slots[s] * seqs.e + k] : 0;
}

// h in front of each row, as (8) needs it: the row of y before, or the state's.
template <class T>
__global__ void before_kernel(Sequences seqs, Rows<const T> y, const float* h, T* before) {
  const int64_t s = blockIdx.y, length = seqs.offsets[s + 1] - seqs.offsets[s];
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < length * seqs.e;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = i / seqs.e, k = i % seqs.e, t = seqs.offsets[s] + row;
    before[t * seqs.e + k] = row > 0 ? y[t - 1][k] : from_float<T>(h ? h[seqs.slots[s] * seqs.e + k] : 0);
  }
}

// Column sums of dx (t, 4 e), a part of the rows each block; sum_parts adds the parts.
template <class T>
__global__ void bias_kernel(Rows<const T> dx, int64_t t, int64_t columns, int64_t each, float* partial) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, begin = blockIdx.y * each;
  if (c >= columns) return;
  float sum = 0;
  for (int64_t row = begin; row < min(begin + each, t); ++row) sum += to_float(dx[row][c]);
  partial[blockIdx.y * columns + c] = sum;
}

struct Run {
  Run(const Seqs& all, int64_t e, const Device& on)
      : device(on),
        tables(all.tables(on)),
        seqs{elements<const int64_t>(tables.offsets), elements<const int64_t>(tables.slots), all.count(), e} {}
  const Device& device;
  const Seqs::Tables& tables;
  Sequences seqs;

  Tensor rows_of(const char* op, const Tensor& slots, Stream stream) const {
    const Tensor result = Tensor::empty({seqs.count, seqs.e}, DType::f32, device);
    launch(op, move_kernel<Move::from_slots>, moves(), 256, stream, seqs, elements<float>(result),
           elements<float>(slots));
    return result;
  }
  void to_slots(const char* op, const Tensor& rows, const Tensor& slots, Stream stream) const {
    launch(op, move_kernel<Move::to_slots>, moves(), 256, stream, seqs, elements<float>(rows), elements<float>(slots));
  }
  dim3 moves() const { return dim3(static_cast<unsigned>(divide_up(seqs.count * seqs.e, 256))); }
  dim3 steps() const {
    return dim3(static_cast<unsigned>(divide_up(seqs.e, kWarps)),
                static_cast<unsigned>(divide_up(seqs.count, kTogether)));
  }
};

template <class T>
void forward(const LstmForward& args, Stream stream) {
  constexpr const char* kName = "lstm";
  const Run run(args.seqs, args.y.size(1), args.x.device());
  Tensor h = run.rows_of(kName, args.h, stream), c = run.rows_of(kName, args.c, stream);
  Tensor other = Tensor::empty(h.shape(), DType::f32, run.device);
  Step<T> step{.x = rows<const T>(args.x),
               .weight = elements<const float>(args.weight),
               .bias = elements<const float>(args.bias),
               .c = elements<float>(c),
               .y = rows<T>(args.y),
               .gates = elements<float>(args.gates),
               .cells = elements<float>(args.cells)};
  for (int64_t row = 0; row < args.seqs.longest; ++row) {
    step.h = elements<float>(h);
    step.new_h = elements<float>(other);
    launch(kName, step_kernel<T>, run.steps(), kWarps * kWarp, stream, run.seqs, step, row);
    std::swap(h, other);
  }
  if (args.h) run.to_slots(kName, h, args.h, stream);
  if (args.c) run.to_slots(kName, c, args.c, stream);
}

// (8) and the bias's sums.
template <class T>
void parameters(const LstmBackward& args, const Run& run, Stream stream) {
  constexpr const char* kName = "lstm backward";
  const int64_t t = args.y.size(0), e = args.y.size(1);
  if (args.dweight && t == 0) args.dweight.fill_zero();
  if (args.dweight && t > 0) {
    const Tensor before = Tensor::empty(args.y.shape(), args.y.dtype(), run.device);
    const auto across = static_cast<unsigned>(std::clamp<int64_t>(divide_up(args.seqs.longest * e, 256), 1, 1024));
    launch(kName, before_kernel<T>, dim3(across, static_cast<unsigned>(run.seqs.count)), 256, stream, run.seqs,
           rows<const T>(args.y), elements<const float>(args.h), elements<T>(before));
    gemm(args.dx, Transpose::yes, before, Transpose::no, args.dweight, false, stream);
  }
  if (!args.dbias) return;
  constexpr int64_t kParts = 64;
  const int64_t each = std::max<int64_t>(divide_up(t, kParts), 1), parts = divide_up(t, each);
  if (parts == 0) return args.dbias.fill_zero();
  const Tensor partial = Tensor::empty({parts, 4 * e}, DType::f32, run.device);
  launch(kName, bias_kernel<T>, dim3(static_cast<unsigned>(divide_up(4 * e, 128)), static_cast<unsigned>(parts)), 128,
         stream, rows<const T>(args.dx), t, 4 * e, each, elements<float>(partial));
  sum_parts(kName, partial, args.dbias, 4 * e, {}, 0, stream);
}

template <class T>
void backward(const LstmBackward& args, Stream stream) {
  constexpr const char* kName = "lstm backward";
  const int64_t e = args.y.size(1);
  const Run run(args.seqs, e, args.y.device());
  const Shape turned = {e, 4 * e}, strides = {1, e};
  const Tensor weight =
      Tensor::borrow(args.weight.raw(), turned, args.weight.dtype(), nullptr, &strides, run.device).clone();
  const Tensor dh = run.rows_of(kName, args.dnew_h, stream), dc = run.rows_of(kName, args.dnew_c, stream);
  Tensor da = Tensor::zeros({run.seqs.count, 4 * e}, DType::f32, run.device), other = da.clone();
  BackwardStep<T> step{.weight = elements<const float>(weight),
                       .gates = elements<const float>(args.gates),
                       .cells = elements<const float>(args.cells),
                       .first_c = elements<const float>(args.c),
                       .dy = rows<const T>(args.dy),
                       .dh = elements<float>(dh),
                       .dc = elements<float>(dc),
                       .dx = rows<T>(args.dx)};
  for (int64_t row = args.seqs.longest; row-- > -1;) {
    step.da = elements<float>(da);
    step.new_da = elements<float>(other);
    launch(kName, backward_step_kernel<T>, run.steps(), kWarps * kWarp, stream, run.seqs, step, row);
    std::swap(da, other);
  }
  // Gradients of slots that nobody advanced pass.
  if (args.dh) args.dnew_h ? args.dh.copy_from(args.dnew_h) : args.dh.fill_zero();
  if (args.dc) args.dnew_c ? args.dc.copy_from(args.dnew_c) : args.dc.fill_zero();
  if (args.dh) run.to_slots(kName, dh, args.dh, stream);
  if (args.dc) run.to_slots(kName, dc, args.dc, stream);
  parameters<T>(args, run, stream);
}

}  // namespace

void lstm_forward(const LstmForward& args, Stream stream) {
  with_element(args.x.dtype(), "lstm", [&]<class T>(T) { forward<T>(args, stream); });
}

void lstm_backward(const LstmBackward& args, Stream stream) {
  with_element(args.y.dtype(), "lstm", [&]<class T>(T) { backward<T>(args, stream); });
}

}  // namespace ssm::cuda
