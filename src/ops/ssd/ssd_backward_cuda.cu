// The backward of ssd on a GPU. One kernel walks each head's tokens back and leaves what sums over heads, and over the
// blocks of a head, as partial sums; small kernels add those up in a fixed order.
//
// The states of a span are computed again from `starts` in three steps: forward once, keeping the state before every
// run of 16 tokens in a buffer of the block; from there to every group of 4 tokens; those 4 in registers.
#include <algorithm>

#include "ops/ssd/ssd_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kRuns = kSsdSpan / kSsdRun;
constexpr int kBlocksOfProcessor = 2;  // that work at a time, so buffers for states are few

// Partial sums, f32; a head's parts lie side by side.
struct Partials {
  float *dB, *dC;          // (t, m parts, n)
  float *ddelta, *ddecay;  // (t, m parts): what (12) gives to the step, and (13)
};

struct SharedArrays {
  float *x, *dy;   // (kSsdRun, width)
  float *dB, *dC;  // (kSsdGroup, threads)
  float* sums;     // (kSsdGroup, warps, kSsdTile): (12)
  float* decays;   // (kSsdGroup, warps): (13)

  static constexpr int kPerThread = 2 * kSsdGroup;
  __host__ __device__ static int64_t count(const SsdPlan& plan) {
    const int warps = plan.threads() / 32;
    return 2 * kSsdRun * plan.width() + kPerThread * plan.threads() + kSsdGroup * warps * (kSsdTile + 1);
  }
  __device__ SharedArrays(float* memory, const SsdPlan& plan)
      : x(memory),
        dy(x + kSsdRun * plan.width()),
        dB(dy + kSsdRun * plan.width()),
        dC(dB + kSsdGroup * plan.threads()),
        sums(dC + kSsdGroup * plan.threads()),
        decays(sums + kSsdGroup * (plan.threads() / 32) * kSsdTile) {}
};

// States of a thread in the block's buffer, so that neighbours write neighbours.
__device__ __forceinline__ void keep(float* buffer, int run, const float (&S)[kSsdTile]) {
#pragma unroll
  for (int j = 0; j < kSsdTile; ++j) buffer[(run * kSsdTile + j) * static_cast<int>(blockDim.x) + threadIdx.x] = S[j];
}
__device__ __forceinline__ void recall(const float* buffer, int run, float (&S)[kSsdTile]) {
#pragma unroll
  for (int j = 0; j < kSsdTile; ++j) S[j] = buffer[(run * kSsdTile + j) * static_cast<int>(blockDim.x) + threadIdx.x];
}

template <class T>
struct Walk {
  SsdInputs<T> in;
  SsdPlan plan;
  const int64_t *offsets, *slots;
  const float* starts;
  float *dstates, *buffers;
  Rows<const T> dy;
  Rows<T> dx;
  Partials partials;
};

// Four tokens from `t`, which are the ones from `group` of the run in shared memory, back: S is the state before them,
// g is a g of (9) of the token after them on entry, of the first of them on return.
template <class T>
__device__ __forceinline__ void group_back(const Walk<T>& walk, const SsdPlace& at, const SharedArrays& shared,
                                           const float* delta, const float* decay, int64_t t, int group, int count,
                                           float (&S)[kSsdTile], float (&g)[kSsdTile]) {
  const SsdInputs<T>& in = walk.in;
  const SsdPlan& plan = walk.plan;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warps = plan.threads() / 32;
  float B[kSsdGroup], C[kSsdGroup], before[kSsdGroup][kSsdTile];
  load_group(in.B, at, t, count - group, B);
  load_group(in.C, at, t, count - group, C);
#pragma unroll
  for (int i = 0; i < kSsdGroup; ++i) {
    float x[kSsdTile];
    load_tile(shared.x + (group + i) * plan.width() + at.tile * kSsdTile, x);
#pragma unroll
    for (int j = 0; j < kSsdTile; ++j) before[i][j] = S[j];
    advance(S, decay[group + i], delta[group + i] * B[i], x);
  }
#pragma unroll
  for (int i = kSsdGroup - 1; i >= 0; --i) {
    const int token = group + i;
    const float* x = shared.x + token * plan.width() + at.tile * kSsdTile;
    const float* dy = shared.dy + token * plan.width() + at.tile * kSsdTile;
    float dC = 0, dB = 0, ddecay = 0, dinput[kSsdTile];
#pragma unroll
    for (int j = 0; j < kSsdTile; ++j) {
      const float out = dy[j], now = i + 1 < kSsdGroup ? before[i + 1 < kSsdGroup ? i + 1 : 0][j] : S[j];
      g[j] = fmaf(C[i], out, g[j]);               // (9)
      dC = fmaf(out, now, dC);                    // (10)
      dB = fmaf(g[j], x[j], dB);                  // (11)
      dinput[j] = B[i] * g[j];                    // (12)
      ddecay = fmaf(before[i][j], g[j], ddecay);  // (13)
      g[j] *= decay[token];
    }
    shared.dB[i * plan.threads() + static_cast<int>(threadIdx.x)] = dB * delta[token];
    shared.dC[i * plan.threads() + static_cast<int>(threadIdx.x)] = dC;
    const float sum = sum_states(dinput);
    if (lane % 2 == 0) shared.sums[(i * warps + warp) * kSsdTile + lane / 2] = sum;
    ddecay = sum_lanes(ddecay * decay[token]);
    if (lane == 0) shared.decays[i * warps + warp] = ddecay;
  }
  __syncthreads();  // the threads' and warps' sums are there

  // dB and dC over the tiles, a thread a state and token.
  for (int i = static_cast<int>(threadIdx.x); i < kSsdGroup * plan.states; i += plan.threads()) {
    const int token = i / plan.states, k = i % plan.states;
    if (group + token >= count || k >= in.n) continue;
    float dB = 0, dC = 0;
    for (int tile = 0; tile < plan.tiles; ++tile) {
      dB += shared.dB[token * plan.threads() + tile * plan.states + k];
      dC += shared.dC[token * plan.threads() + tile * plan.states + k];
    }
    const int64_t to = (((t + token) * in.m + at.head) * plan.parts + at.part) * in.n + k;
    if (walk.partials.dB) walk.partials.dB[to] = dB;
    if (walk.partials.dC) walk.partials.dC[to] = dC;
  }
  // dx and the step, a warp a token.
  for (int token = warp; token < min(kSsdGroup, count - group); token += warps) {
    float ddelta = 0;
    for (int c = lane; c < plan.width() && at.first + c < in.p; c += 32) {
      const float* mine = shared.sums + (token * warps + c / kSsdTile * plan.warps()) * kSsdTile + c % kSsdTile;
      float dinput = 0;
      for (int other = 0; other < plan.warps(); ++other) dinput += mine[other * kSsdTile];
      const int place = (group + token) * plan.width() + c;
      ddelta = fmaf(dinput, shared.x[place], ddelta);
      if (walk.dx)
        walk.dx[t + token][at.head * in.p + at.first + c] =
            from_float<T>(fmaf(delta[group + token], dinput, in.D_at(at.head, at.first + c) * shared.dy[place]));
    }
    ddelta = sum_lanes(ddelta);
    float ddecay = 0;
    for (int other = lane; other < warps; other += 32) ddecay += shared.decays[token * warps + other];
    ddecay = sum_lanes(ddecay);
    const int64_t to = ((t + token) * in.m + at.head) * plan.parts + at.part;
    if (lane == 0) walk.partials.ddelta[to] = ddelta, walk.partials.ddecay[to] = ddecay;
  }
  __syncthreads();  // the sums may be overwritten
}

// Tokens of the run from `t`, up to the one before `last`.
template <class T>
__device__ __forceinline__ void advance_run(const Walk<T>& walk, const SsdPlace& at, const float* x, const float* delta,
                                            const float* decay, int64_t t, int last, float (&S)[kSsdTile]) {
#pragma unroll 1
  for (int group = 0; group < last; group += kSsdGroup) {
    float B[kSsdGroup];
    load_group(walk.in.B, at, t + group, last - group, B);
#pragma unroll
    for (int i = 0; i < kSsdGroup; ++i) {
      float inputs[kSsdTile];
      load_tile(x + (group + i) * walk.plan.width() + at.tile * kSsdTile, inputs);
      advance(S, decay[group + i], delta[group + i] * B[i], inputs);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kSsdThreads) backward_kernel(const Walk<T> walk, int64_t works) {
  extern __shared__ float4 memory[];
  __shared__ float delta[kSsdRun], decay[kSsdRun];
  const SsdInputs<T>& in = walk.in;
  const SsdPlan& plan = walk.plan;
  const SharedArrays shared(reinterpret_cast<float*>(memory), plan);
  float* buffer = walk.buffers + blockIdx.x * static_cast<int64_t>(kRuns * kSsdTile) * plan.threads();

  for (int64_t work = blockIdx.x; work < works; work += gridDim.x) {
    const SsdPlace at(in, plan, work);
    const int64_t begin = walk.offsets[at.sequence], end = walk.offsets[at.sequence + 1];
    const int64_t first = first_span(walk.offsets, at.sequence);
    if (begin == end) continue;
    float g[kSsdTile] = {};
    float* dstate = walk.dstates ? walk.dstates + (walk.slots[at.sequence] * in.m + at.head) * in.n * in.p : nullptr;
    if (dstate) load_states(in, at, dstate, g);

    for (int64_t span = (end - begin - 1) / kSsdSpan; span >= 0; --span) {
      const int64_t from = begin + span * kSsdSpan;
      const int tokens = static_cast<int>(min(end - from, kSsdSpan));
      const int runs = (tokens + kSsdRun - 1) / kSsdRun;
      float S[kSsdTile];
      load_states(in, at, walk.starts + ((first + span) * in.m + at.head) * in.n * in.p, S);
      for (int run = 0; run < runs; ++run) {
        keep(buffer, run, S);
        if (run + 1 == runs) break;
        stage_steps(in, at, from + run * kSsdRun, kSsdRun, delta, decay);
        stage_channels(in, plan, at, in.x, from + run * kSsdRun, kSsdRun, shared.x);
        __syncthreads();  // the run is there
        advance_run(walk, at, shared.x, delta, decay, from + run * kSsdRun, kSsdRun, S);
        __syncthreads();  // it may be overwritten
      }
      for (int run = runs - 1; run >= 0; --run) {
        const int64_t t = from + run * kSsdRun;
        const int count = min(kSsdRun, tokens - run * kSsdRun);
        stage_steps(in, at, t, count, delta, decay);
        stage_channels(in, plan, at, in.x, t, count, shared.x);
        stage_channels(in, plan, at, walk.dy, t, count, shared.dy);
        __syncthreads();  // the run is there
        for (int group = (count - 1) / kSsdGroup * kSsdGroup; group >= 0; group -= kSsdGroup) {
          recall(buffer, run, S);
          advance_run(walk, at, shared.x, delta, decay, t, group, S);
          group_back(walk, at, shared, delta, decay, t + group, group, count, S, g);
        }
      }
    }
    if (dstate) store_states(in, at, dstate, g);
  }
}

// Sums
// -------------------------------------------------------------------------------------------------------------------

constexpr int kSumThreads = 256;

// to (t, g n): over the heads of a group and their parts, (t, g, terms, n).
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_heads_kernel(const float* from, int64_t t, int64_t g, int64_t n, int64_t terms, Rows<T> to) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kSumThreads) + threadIdx.x;
  if (i >= t * g * n) return;
  const float* mine = from + i / n * terms * n + i % n;
  float sum = 0;
  for (int64_t term = 0; term < terms; ++term) sum += mine[term * n];
  to[i / (g * n)][i % (g * n)] = from_float<T>(sum);
}

// ddt; and in place of the first part's ddelta what the bias gets, of its ddecay what A_log gets.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    steps_kernel(const SsdInputs<T> in, int64_t t, int64_t parts, float* ddelta, float* ddecay, Rows<T> ddt) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(kSumThreads) + threadIdx.x;
  if (i >= t * in.m) return;
  const int64_t token = i / in.m, head = i % in.m;
  float from_inputs = 0, from_decay = 0;
  for (int64_t part = 0; part < parts; ++part) {
    from_inputs += ddelta[i * parts + part];
    from_decay += ddecay[i * parts + part];
  }
  const float A = in.decay_rate(head), raw = in.raw(token, head), step = in.softplus(raw);
  const bool limited = step < in.dt_min || step > in.dt_max;
  const float slope = limited ? 0 : raw > 20 ? 1 : 1 / (1 + expf(-raw));
  const float draw = fmaf(from_decay, A, from_inputs) * slope;
  if (ddt) ddt[token][head] = from_float<T>(draw);
  ddelta[i * parts] = draw;
  ddecay[i * parts] = from_decay * in.delta(token, head) * A;
}

// Sums over the tokens of value(token, column), in two steps: pieces of tokens, then those.
constexpr int kColumns = 32, kLines = 8;
constexpr int64_t kTokens = 1024;

struct Strided {  // every `step`-th number of rows of `columns` of them
  const float* from;
  int64_t columns, step;
  __device__ float operator()(int64_t token, int64_t column) const { return from[(token * columns + column) * step]; }
};
template <class T>
struct Products {
  Rows<const T> a, b;
  __device__ float operator()(int64_t token, int64_t column) const {
    return to_float(a[token][column]) * to_float(b[token][column]);
  }
};

template <class Value>
__global__ void __launch_bounds__(kColumns* kLines)
    sum_tokens_kernel(const Value value, int64_t t, int64_t columns, float* pieces) {
  __shared__ float lines[kLines][kColumns];
  const int64_t column = blockIdx.x * static_cast<int64_t>(kColumns) + threadIdx.x;
  const int64_t begin = blockIdx.y * kTokens, end = min(begin + kTokens, t);
  float sum = 0;
  if (column < columns)
    for (int64_t token = begin + threadIdx.y; token < end; token += kLines) sum += value(token, column);
  lines[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();  // the lines' sums are there
  if (threadIdx.y != 0 || column >= columns) return;
  for (int line = 1; line < kLines; ++line) sum += lines[line][threadIdx.x];
  pieces[blockIdx.y * columns + column] = sum;
}

// to (outputs): over the pieces and over `width` neighbouring columns. A warp an output.
__global__ void __launch_bounds__(kSumThreads)
    sum_pieces_kernel(const float* pieces, int64_t count, int64_t outputs, int64_t width, float* to) {
  const int64_t output = (blockIdx.x * static_cast<int64_t>(kSumThreads) + threadIdx.x) / 32;
  if (output >= outputs) return;
  double sum = 0;
  for (int64_t i = threadIdx.x % 32; i < count * width; i += 32)
    sum += static_cast<double>(pieces[i / width * outputs * width + output * width + i % width]);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) to[output] = static_cast<float>(sum);
}

template <class Value>
void sum_tokens(const Value& value, int64_t t, int64_t columns, const Tensor& to, Stream stream) {
  if (!to) return;
  const int64_t pieces = divide_up(t, kTokens), outputs = to.count();
  const Tensor partial = Tensor::empty({pieces, columns}, DType::f32, to.device());
  const dim3 grid(static_cast<unsigned>(divide_up(columns, kColumns)), static_cast<unsigned>(pieces));
  launch("ssd", sum_tokens_kernel<Value>, grid, dim3(kColumns, kLines), stream, value, t, columns,
         elements<float>(partial));
  launch("ssd", sum_pieces_kernel, static_cast<unsigned>(divide_up(32 * outputs, kSumThreads)), kSumThreads, stream,
         elements<float>(partial), pieces, outputs, columns / outputs, elements<float>(to));
}

template <class T>
void run(const SsdBackward& args, Stream stream) {
  const Device& device = args.x.device();
  const Seqs& seqs = *args.seqs;
  const SsdInputs<T> in(args);
  const SsdPlan plan(in.n, in.p);
  const int64_t t = seqs.tokens(), works = seqs.count() * in.m * plan.parts, terms = in.m / in.g * plan.parts;
  const int64_t blocks = std::min<int64_t>(works, kBlocksOfProcessor * multiprocessors(device));
  const auto partial = [&](bool wanted, const Shape& shape) {
    return wanted ? Tensor::empty(shape, DType::f32, device) : Tensor();
  };
  const Tensor dB = partial(static_cast<bool>(args.dB), {t, in.m * plan.parts, in.n}),
               dC = partial(static_cast<bool>(args.dC), {t, in.m * plan.parts, in.n}),
               ddelta = partial(true, {t, in.m * plan.parts}), ddecay = partial(true, {t, in.m * plan.parts}),
               buffers = partial(true, {blocks, kRuns * kSsdTile, plan.threads()});
  const Seqs::Tables& tables = seqs.tables(device);
  const Walk<T> walk{
      .in = in,
      .plan = plan,
      .offsets = elements<int64_t>(tables.offsets),
      .slots = elements<int64_t>(tables.slots),
      .starts = elements<float>(args.starts),
      .dstates = elements<float>(args.dstate),
      .buffers = elements<float>(buffers),
      .dy = rows<const T>(args.dy),
      .dx = rows<T>(args.dx),
      .partials = {elements<float>(dB), elements<float>(dC), elements<float>(ddelta), elements<float>(ddecay)}};
  launch("ssd", backward_kernel<T>, static_cast<unsigned>(blocks), static_cast<unsigned>(plan.threads()),
         LaunchOptions{.shared = sizeof(float) * static_cast<size_t>(SharedArrays::count(plan))}, stream, walk, works);

  const auto blocks_for = [](int64_t count) { return static_cast<unsigned>(divide_up(count, kSumThreads)); };
  for (const auto& [from, to] : {std::pair{&dB, &args.dB}, std::pair{&dC, &args.dC}})
    if (*to)
      launch("ssd", sum_heads_kernel<T>, blocks_for(t * in.g * in.n), kSumThreads, stream, elements<float>(*from), t,
             in.g, in.n, terms, rows<T>(*to));
  launch("ssd", steps_kernel<T>, blocks_for(t * in.m), kSumThreads, stream, in, t, plan.parts, elements<float>(ddelta),
         elements<float>(ddecay), rows<T>(args.ddt));
  sum_tokens(Strided{elements<float>(ddelta), in.m, plan.parts}, t, in.m, args.ddt_bias, stream);
  sum_tokens(Strided{elements<float>(ddecay), in.m, plan.parts}, t, in.m, args.dA_log, stream);
  sum_tokens(Products<T>{in.x, walk.dy}, t, in.m * in.p, args.dD, stream);
}

}  // namespace

void ssd_backward(const SsdBackward& args, Stream stream) {
  with_element(args.x.dtype(), "ssd", [&]<class T>(T) { run<T>(args, stream); });
}

}  // namespace ssm::cuda
