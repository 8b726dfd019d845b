// The forward of ssd on the CPU. Long inputs go chunk by chunk as matrix products, few tokens by the recurrence, state
// by state in registers. A task is a sequence and some heads of one group; no sum crosses heads, so how the heads are
// dealt out changes no bit. Lanes are channels of a head. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/ssd/ssd_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

#include "ops/ssd/ssd_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Up to so many tokens the recurrence is faster than the chunk's matrices.
constexpr int64_t kFewTokens = 12;
// States of a row computed together: all a head's channels of 4 vectors, and as many rows as the registers hold.
constexpr int kStateVectors = 4, kStateRows = HWY_TARGET == HWY_AVX3 ? 4 : 2;
// Heads of a task: they share C B^T, and their states (8 x 32 KiB for 128 x 64) a second-level cache.
constexpr int64_t kMostHeads = 8;
// Below this many states times tokens (about 10 us) waking a thread costs more than it brings.
constexpr int64_t kOneTask = 65536;

// (2) and (3) without D for kVectors vectors of a head's channels, from c on, and all its tokens: every state is read
// and written once. `inputs` and `y` are (count, pp); y starts at zero.
template <int kRows, int kVectors>
HWY_INLINE void few_tokens_of(const Inputs& in, int64_t group, const Chunk& chunk, const float* decay,
                              const float* inputs, int64_t k, int64_t c, float* S, float* y) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t p = in.sizes.p, column = group * in.sizes.n + k;
  const auto count = [&](int v) { return static_cast<size_t>(p - c - v * lanes); };
  Sums<kRows, kVectors> states;
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) states.at[r][v] = load_up_to(d, S + (k + r) * p + c + v * lanes, count(v));
  for (int64_t i = 0; i < chunk.count; ++i) {
    const float *B = in.B[chunk.begin + i] + column, *C = in.C[chunk.begin + i] + column;
    const float* input = inputs + i * in.pp + c;
    float* to = y + i * in.pp + c;
    const auto a = hn::Set(d, decay[i]);
    Vec sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = hn::LoadU(d, to + v * lanes);
    for (int r = 0; r < kRows; ++r) {
      const auto b = hn::Set(d, B[r]), weight = hn::Set(d, C[r]);
      for (int v = 0; v < kVectors; ++v) {
        Vec& state = states.at[r][v];
        state = hn::MulAdd(a, state, hn::Mul(b, hn::LoadU(d, input + v * lanes)));
        sums[v] = hn::MulAdd(weight, state, sums[v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[v], d, to + v * lanes);
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store_up_to(d, states.at[r][v], S + (k + r) * p + c + v * lanes, count(v));
}

// What a worker needs: for one chunk of one head, and for all the heads of a block.
struct ForwardScratch {
  float *delta, *decay, *from_start, *to_end;  // (c), c = kChunk
  float *inputs, *M, *y;                       // (c, pp), (c, c), (few, pp)
  float *B, *C, *B_transposed, *G;             // (c, nn) twice, (n, c), (c, c)
  float* S;                                    // (heads, n, pp)
  int64_t size;

  ForwardScratch(float* from, const Inputs& in, int64_t heads) {
    Scratch scratch(from);
    const int64_t n = in.sizes.n;
    delta = scratch.take(kChunk), decay = scratch.take(kChunk);
    from_start = scratch.take(kChunk), to_end = scratch.take(kChunk);
    inputs = scratch.take(kChunk * in.pp), M = scratch.take(kChunk * kChunk);
    y = scratch.take(kFewTokens * in.pp);
    B = scratch.take(kChunk * in.nn), C = scratch.take(kChunk * in.nn);
    B_transposed = scratch.take(n * kChunk), G = scratch.take(kChunk * kChunk);
    S = scratch.take(heads * n * in.pp);
    size = scratch.taken();
  }
};

// y (t, m p): adds D x to what one head's channels from c on have in `y`, and puts it into its place.
HWY_INLINE void finish(const Inputs& in, const Matrix<float>& out, int64_t head, int64_t t, int64_t c, Vec y) {
  const Tag d;
  const auto count = static_cast<size_t>(in.sizes.p - c);
  if (in.D) y = hn::MulAdd(in.D_at(head, c), load_up_to(d, in.x_of(t, head) + c, count), y);
  store_up_to(d, y, out[t] + head * in.sizes.p + c, count);
}

// A few tokens of one head, its state S (n, p) in place.
void few_tokens(const Inputs& in, int64_t head, const Chunk& chunk, const ForwardScratch& scratch, float* S,
                const Matrix<float>& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t p = in.sizes.p, n = in.sizes.n, group = in.sizes.group_of(head);
  load_steps(in, head, chunk, scratch.delta, scratch.decay);
  load_rows(in, in.x, head, chunk, scratch.delta, scratch.inputs);
  std::fill_n(scratch.y, chunk.count * in.pp, 0.0f);
  const auto all_states = [&](auto vectors, int64_t c) {
    int64_t k = 0;
    for (; k + kStateRows <= n; k += kStateRows)
      few_tokens_of<kStateRows, vectors>(in, group, chunk, scratch.decay, scratch.inputs, k, c, S, scratch.y);
    for (; k < n; ++k) few_tokens_of<1, vectors>(in, group, chunk, scratch.decay, scratch.inputs, k, c, S, scratch.y);
  };
  int64_t c = 0;
  for (; c + kStateVectors * lanes <= p; c += kStateVectors * lanes) all_states(Int<kStateVectors>(), c);
  for (; c < p; c += lanes) all_states(Int<1>(), c);
  for (int64_t i = 0; i < chunk.count; ++i)
    for (c = 0; c < p; c += lanes) finish(in, out, head, chunk.begin + i, c, hn::LoadU(d, scratch.y + i * in.pp + c));
}

// One chunk of one head: (7), then (8). G, B and C are there.
void forward_chunk(const Inputs& in, int64_t head, const Chunk& chunk, const ForwardScratch& scratch, float* S,
                   const Matrix<float>& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t n = in.sizes.n, pp = in.pp;
  load_steps(in, head, chunk, scratch.delta, scratch.decay);
  load_rows(in, in.x, head, chunk, scratch.delta, scratch.inputs);
  for_decays(chunk.count, scratch.decay, scratch.from_start, scratch.to_end, [&](int64_t i, int64_t j, Vec L) HWY_ATTR {
    hn::StoreU(hn::Mul(L, hn::LoadU(d, scratch.G + i * kChunk + j)), d, scratch.M + i * kChunk + j);
  });
  for_tiles(0, chunk.count, pp, [&](auto rows, auto vectors, int64_t i, int64_t c) HWY_ATTR {
    Sums<rows, vectors> sums;
    clear(sums);
    accumulate(scratch.C + i * in.nn, in.nn, 1, S + c, pp, n, sums);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sums.at[r][v] = hn::Mul(sums.at[r][v], hn::Set(d, scratch.from_start[i + r]));
    accumulate_lower(scratch.M + i * kChunk, scratch.inputs + c, pp, i, sums);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors && c + v * lanes < in.sizes.p; ++v)
        finish(in, out, head, chunk.begin + i + r, c + v * lanes, sums.at[r][v]);
  });
  scale_rows(scratch.to_end, chunk.count, pp, scratch.inputs);
  advance_state(in, scratch.B, scratch.inputs, chunk.count, scratch.from_start[chunk.count - 1], S, S);
}

void ssd_forward(const SsdForward& args, Threads& threads) {
  const Inputs in(args);
  const SsdSizes& sizes = args.sizes;
  const Seqs& seqs = *args.seqs;
  const auto out = args.y.matrix<float>();
  const int64_t n = sizes.n, head_size = n * sizes.p, state_size = sizes.m * head_size;
  // Two tasks a thread or more, unless that makes them small.
  const int64_t even = seqs.count() * sizes.m / (2 * threads.count());
  const bool small = in.x.rows * state_size <= kOneTask;
  const HeadBlocks blocks{sizes, std::clamp<int64_t>(small ? sizes.m : even, 1, kMostHeads)};
  const std::vector<int64_t> first_span = ssd_first_spans(seqs);
  const int64_t scratch_size = ForwardScratch(nullptr, in, blocks.heads).size;
  const Tensor memory = Tensor::empty({threads.count(), scratch_size}, DType::f32);

  threads.parallel(seqs.count() * blocks.count(), [&](int64_t task, int worker) {
    const auto s = static_cast<size_t>(task / blocks.count());
    const int64_t block = task % blocks.count(), group = blocks.group(block);
    const int64_t begin = seqs.offsets[s], end = seqs.offsets[s + 1];
    if (begin == end) return;
    const ForwardScratch scratch(memory.matrix<float>()[worker], in, blocks.heads);
    const auto state_in = [&](const Tensor& states, int64_t row, int64_t head) {
      return states ? states.data<float>() + row * state_size + head * head_size : nullptr;
    };

    if (end - begin <= kFewTokens) {
      for (int64_t head = blocks.begin(block); head < blocks.end(block); ++head) {
        float* S = state_in(args.state, seqs.slots[s], head);
        if (!S) std::fill_n(S = scratch.S, head_size, 0.0f);
        if (args.starts) std::copy_n(S, head_size, state_in(args.starts, first_span[s], head));
        few_tokens(in, head, {begin, end - begin}, scratch, S, out);
      }
      return;
    }

    const auto S_of = [&](int64_t head) { return scratch.S + (head - blocks.begin(block)) * n * in.pp; };
    for (int64_t head = blocks.begin(block); head < blocks.end(block); ++head)
      load_state(in, state_in(args.state, seqs.slots[s], head), S_of(head));
    for (int64_t t = begin; t < end; t += kChunk) {
      const Chunk chunk{t, std::min(kChunk, end - t)};
      load_group(in, in.B, group, chunk, scratch.B);
      load_group(in, in.C, group, chunk, scratch.C);
      transpose(scratch.B, in.nn, chunk.count, n, scratch.B_transposed, kChunk);
      multiply_lower(scratch.C, in.nn, scratch.B_transposed, n, chunk.count, scratch.G);
      for (int64_t head = blocks.begin(block); head < blocks.end(block); ++head) {
        if (args.starts && (t - begin) % kSsdSpan == 0)
          store_state(in, S_of(head), state_in(args.starts, first_span[s] + (t - begin) / kSsdSpan, head));
        forward_chunk(in, head, chunk, scratch, S_of(head), out);
      }
    }
    if (args.state)
      for (int64_t head = blocks.begin(block); head < blocks.end(block); ++head)
        store_state(in, S_of(head), state_in(args.state, seqs.slots[s], head));
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(ssd_forward);

void ssd_forward(const SsdForward& args, Threads& threads) { HWY_DYNAMIC_DISPATCH(ssd_forward)(args, threads); }
}  // namespace ssm::cpu
#endif
