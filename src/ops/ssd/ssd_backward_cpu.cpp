// The backward of ssd on the CPU, chunk by chunk as matrix products, last to first. A task is a sequence and some heads
// of one group: it computes the states of a span once more, walks its chunks backward, and sums its heads' share of dB
// and dC; the shares are added in order. Nothing depends on the number of threads. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/ssd/ssd_backward_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

#include "ops/ssd/ssd_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Heads of a task: they share C B^T and one copy of dB and dC. A number of its own, because the order of a sum must not
// depend on the number of threads.
constexpr int64_t kBackwardHeads = 4;
constexpr int64_t kSpanChunks = kSsdSpan / kChunk;

// What a worker needs. c = kChunk; n and p in whole vectors are nn and pp.
struct BackwardScratch {
  // One head of one chunk.
  float *delta, *decay, *from_start, *to_end;  // (c)
  float *from_states, *to_states;              // (c): q and r of (19)
  float *columns, *dlog_a, *ddelta;            // (c): sums of (19) over rows; its result; dX~ . x
  float *inputs, *dy, *dinputs;                // (c, pp): X~ of (5), dY, and the gradient of X~
  float *inputs_transposed, *dy_transposed;    // (pp, c)
  float *M, *W;                                // (c, c)
  // One chunk, all heads of the block.
  float *B, *C, *turned;                 // (c, nn)
  float *B_transposed, *C_transposed;    // (n, c)
  float *dB_transposed, *dC_transposed;  // (n, c): what comes from the states
  float *G, *dG;                         // (c, c)
  // All heads of the block.
  float *S, *dS;  // (heads, chunks of a span, n, pp), (heads, n, pp)
  int64_t size;

  BackwardScratch(float* from, const Inputs& in) {
    Scratch scratch(from);
    const int64_t n = in.sizes.n, state = n * in.pp;
    for (float** one : {&delta, &decay, &from_start, &to_end, &from_states, &to_states, &columns, &dlog_a, &ddelta})
      *one = scratch.take(kChunk);
    for (float** one : {&inputs, &dy, &dinputs, &inputs_transposed, &dy_transposed})
      *one = scratch.take(kChunk * in.pp);
    for (float** one : {&M, &W, &G, &dG}) *one = scratch.take(kChunk * kChunk);
    for (float** one : {&B, &C, &turned}) *one = scratch.take(kChunk * in.nn);
    for (float** one : {&B_transposed, &C_transposed, &dB_transposed, &dC_transposed}) *one = scratch.take(n * kChunk);
    S = scratch.take(kBackwardHeads * kSpanChunks * state);
    dS = scratch.take(kBackwardHeads * state);
    size = scratch.taken();
  }
};

// Where a task puts its results. Absent ones are null.
struct BackwardOut {
  Matrix<float> dy, dx, ddt;
  Matrix<float> dB, dC;           // (t, n): this block's share
  float *dA_log, *ddt_bias, *dD;  // (m), (m), (m) or (m p): this sequence's sums, starting at zero
};

// Sums over the vectors of two arrays of equal, whole length.
HWY_INLINE float dot(const float* a, const float* b, int64_t count) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < count; i += lanes) sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// With P = (state rows_transposed) diag(factors), (n, count): gradients += P, and dots_i = sum over n of other_ni P_ni.
// For dC and q of (19): S, dY, e and C; for dB and r: dS, X~, t and B.
void through_state(const Inputs& in, const float* state, const float* rows_transposed, const float* factors,
                   const float* other, int64_t count, float* gradients, float* dots) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  std::fill_n(dots, round_up(count), 0.0f);
  for_tiles(0, in.sizes.n, round_up(count), [&](auto rows, auto vectors, int64_t k, int64_t i) HWY_ATTR {
    Sums<rows, vectors> sums;
    clear(sums);
    accumulate(state + k * in.pp, in.pp, 1, rows_transposed + i, kChunk, in.sizes.p, sums);
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = i + v * lanes;
      const auto factor = hn::LoadU(d, factors + at);
      auto dot_sum = hn::LoadU(d, dots + at);
      for (int r = 0; r < rows; ++r) {
        const auto product = hn::Mul(sums.at[r][v], factor);
        float* to = gradients + (k + r) * kChunk + at;
        hn::StoreU(hn::Add(product, hn::LoadU(d, to)), d, to);
        dot_sum = hn::MulAdd(product, hn::LoadU(d, other + (k + r) * kChunk + at), dot_sum);
      }
      hn::StoreU(dot_sum, d, dots + at);
    }
  });
}

// (19), from P = L o G o W in scratch.W, q, r and <S, dS> e_end. Walks the rows from the last: `columns` are then the
// sums of P's columns over the rows from k on, and only terms of one sign of meaning are ever added.
void gradient_of_decays(const BackwardScratch& scratch, int64_t count, float through_chunk) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  std::fill_n(scratch.columns, round_up(count), 0.0f);
  float before = through_chunk;
  for (int64_t k = 0; k < count; ++k) {
    scratch.dlog_a[k] = before;
    before += scratch.to_states[k];
  }
  float after = 0;
  for (int64_t k = count; k-- > 0;) {
    auto sum = hn::Zero(d);
    for (int64_t j = 0; j < k; j += lanes) {
      const auto column = hn::Add(hn::LoadU(d, scratch.columns + j), hn::LoadU(d, scratch.W + k * kChunk + j));
      hn::StoreU(column, d, scratch.columns + j);
      sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(k - j)), column));
    }
    after += scratch.from_states[k];
    scratch.dlog_a[k] += after + hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

// d delta of a chunk's tokens to dt: the derivative of (1).
void gradient_of_steps(const Inputs& in, int64_t head, const Chunk& chunk, const BackwardScratch& scratch,
                       const BackwardOut& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float A = -std::exp(in.A_log[head]);
  float dA = 0;
  for (int64_t i = 0; i < chunk.count; ++i) {
    scratch.ddelta[i] += A * scratch.dlog_a[i];
    dA += scratch.dlog_a[i] * scratch.delta[i];
  }
  out.dA_log[head] += A * dA;
  load_raw_steps(in, head, chunk, scratch.decay);
  const auto low = hn::Set(d, in.dt_min), high = hn::Set(d, in.dt_max);
  for (int64_t i = 0; i < chunk.count; i += lanes) {
    const auto raw = hn::LoadU(d, scratch.decay + i), step = softplus(d, raw);
    const auto limited = hn::Or(hn::Lt(step, low), hn::Gt(step, high));
    const auto slope = hn::IfThenElse(limited, hn::Zero(d), sigmoid(d, raw));
    hn::StoreU(hn::Mul(slope, hn::LoadU(d, scratch.ddelta + i)), d, scratch.ddelta + i);
  }
  for (int64_t i = 0; i < chunk.count; ++i) {
    if (out.ddt) out.ddt[chunk.begin + i][head] = scratch.ddelta[i];
    out.ddt_bias[head] += scratch.ddelta[i];
  }
}

// dx, dD and the x part of d delta, from the gradient of X~.
void gradient_of_inputs(const Inputs& in, int64_t head, const Chunk& chunk, const BackwardScratch& scratch,
                        const BackwardOut& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t p = in.sizes.p;
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t t = chunk.begin + i;
    const auto delta = hn::Set(d, scratch.delta[i]);
    auto ddelta = hn::Zero(d), dD = hn::Zero(d);
    for (int64_t c = 0; c < p; c += lanes) {
      const auto count = static_cast<size_t>(p - c);
      const auto x = load_up_to(d, in.x_of(t, head) + c, count);
      const auto dy = hn::LoadU(d, scratch.dy + i * in.pp + c), dinput = hn::LoadU(d, scratch.dinputs + i * in.pp + c);
      ddelta = hn::MulAdd(dinput, x, ddelta);
      if (out.dx)
        store_up_to(d, hn::MulAdd(delta, dinput, hn::Mul(in.D_at(head, c), dy)), out.dx[t] + head * p + c, count);
      const auto product = hn::Mul(dy, x);
      dD = hn::Add(dD, product);
      if (!in.D_of_channels) continue;
      float* to = out.dD + head * p + c;
      store_up_to(d, hn::Add(product, load_up_to(d, to, count)), to, count);
    }
    scratch.ddelta[i] = hn::GetLane(hn::SumOfLanes(d, ddelta));
    if (!in.D_of_channels) out.dD[head] += hn::GetLane(hn::SumOfLanes(d, dD));
  }
}

// One chunk of one head: from dS, the gradient of its last state, to that of its first. S is its first state.
void backward_chunk(const Inputs& in, int64_t head, const Chunk& chunk, const float* S, const BackwardScratch& scratch,
                    float* dS, const BackwardOut& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t count = chunk.count, n = in.sizes.n, p = in.sizes.p, pp = in.pp;
  load_steps(in, head, chunk, scratch.delta, scratch.decay);
  load_rows(in, in.x, head, chunk, scratch.delta, scratch.inputs);
  load_rows(in, out.dy, head, chunk, nullptr, scratch.dy);
  transpose(scratch.inputs, pp, count, p, scratch.inputs_transposed, kChunk);
  transpose(scratch.dy, pp, count, p, scratch.dy_transposed, kChunk);

  multiply_lower(scratch.dy, pp, scratch.inputs_transposed, p, count, scratch.W);  // (16)
  for_decays(count, scratch.decay, scratch.from_start, scratch.to_end, [&](int64_t i, int64_t j, Vec L) HWY_ATTR {
    const int64_t at = i * kChunk + j;
    const auto M = hn::Mul(L, hn::LoadU(d, scratch.G + at)), W = hn::LoadU(d, scratch.W + at);
    hn::StoreU(M, d, scratch.M + at);
    hn::StoreU(hn::MulAdd(L, W, hn::LoadU(d, scratch.dG + at)), d, scratch.dG + at);
    hn::StoreU(hn::Mul(M, W), d, scratch.W + at);  // P of (19)
  });
  const float through_chunk = scratch.from_start[count - 1];
  std::fill(scratch.from_start + count, scratch.from_start + round_up(count), 0.0f);

  through_state(in, S, scratch.dy_transposed, scratch.from_start, scratch.C_transposed, count, scratch.dC_transposed,
                scratch.from_states);  // (17)
  through_state(in, dS, scratch.inputs_transposed, scratch.to_end, scratch.B_transposed, count, scratch.dB_transposed,
                scratch.to_states);  // (18)
  gradient_of_decays(scratch, count, through_chunk * dot(S, dS, n * pp));

  for_tiles(0, count, pp, [&](auto rows, auto vectors, int64_t i, int64_t c) HWY_ATTR {  // (15)
    Sums<rows, vectors> sums;
    clear(sums);
    accumulate(scratch.B + i * in.nn, in.nn, 1, dS + c, pp, n, sums);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sums.at[r][v] = hn::Mul(sums.at[r][v], hn::Set(d, scratch.to_end[i + r]));
    accumulate_upper(scratch.M + i * kChunk + i, scratch.dy + i * pp + c, pp, count - i, sums);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) hn::StoreU(sums.at[r][v], d, scratch.dinputs + (i + r) * pp + c + v * lanes);
  });
  gradient_of_inputs(in, head, chunk, scratch, out);
  gradient_of_steps(in, head, chunk, scratch, out);
  scale_rows(scratch.from_start, count, pp, scratch.dy);
  advance_state(in, scratch.C, scratch.dy, count, through_chunk, dS, dS);  // (14)
}

// The products with dG that all heads of a block share, and the sums over them: (17) and (18).
void gradient_of_group(const Inputs& in, const Chunk& chunk, const BackwardScratch& scratch, const BackwardOut& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto add = [&](const float* transposed, const Matrix<float>& to, const auto& product) {
    transpose(transposed, kChunk, in.sizes.n, chunk.count, scratch.turned, in.nn);
    for_tiles(0, chunk.count, in.nn, [&](auto rows, auto vectors, int64_t i, int64_t k) HWY_ATTR {
      Sums<rows, vectors> sums;
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v)
          sums.at[r][v] = hn::LoadU(d, scratch.turned + (i + r) * in.nn + k + v * lanes);
      product(i, k, sums);
      for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors && k + v * lanes < in.sizes.n; ++v)
          store_up_to(d, sums.at[r][v], to[chunk.begin + i + r] + k + v * lanes,
                      static_cast<size_t>(in.sizes.n - k - v * lanes));
    });
  };
  add(scratch.dC_transposed, out.dC, [&](int64_t i, int64_t k, auto& sums) HWY_ATTR {
    accumulate_lower(scratch.dG + i * kChunk, scratch.B + k, in.nn, i, sums);
  });
  add(scratch.dB_transposed, out.dB, [&](int64_t i, int64_t k, auto& sums) HWY_ATTR {
    accumulate_upper(scratch.dG + i * kChunk + i, scratch.C + i * in.nn + k, in.nn, chunk.count - i, sums);
  });
}

// All tokens of a sequence [begin, end) and the heads [first, last) of one group. `starts` and `dstate` are the first
// head's parts of the sequence's first row of SsdBackward::starts and of its row of dstate, which may be null.
void backward_sequence(const Inputs& in, int64_t begin, int64_t end, int64_t first, int64_t last, const float* starts,
                       float* dstate, const BackwardScratch& scratch, const BackwardOut& out) {
  const int64_t n = in.sizes.n, padded = n * in.pp, head_size = n * in.sizes.p, group = in.sizes.group_of(first);
  const auto S_of = [&](int64_t head, int64_t chunk) {
    return scratch.S + ((head - first) * kSpanChunks + chunk) * padded;
  };
  const auto dS_of = [&](int64_t head) { return scratch.dS + (head - first) * padded; };
  for (int64_t head = first; head < last; ++head)
    load_state(in, dstate ? dstate + (head - first) * head_size : nullptr, dS_of(head));
  for (int64_t span = (end - begin - 1) / kSsdSpan; span >= 0; --span) {
    const int64_t span_begin = begin + span * kSsdSpan, span_end = std::min(end, span_begin + kSsdSpan);
    const int64_t chunks = (span_end - span_begin + kChunk - 1) / kChunk;
    for (int64_t head = first; head < last; ++head)
      load_state(in, starts + (span * in.sizes.m + head - first) * head_size, S_of(head, 0));
    for (int64_t k = 0; k + 1 < chunks; ++k) {  // (8)
      const Chunk chunk{span_begin + k * kChunk, kChunk};
      load_group(in, in.B, group, chunk, scratch.B);
      for (int64_t head = first; head < last; ++head) {
        load_steps(in, head, chunk, scratch.delta, scratch.decay);
        load_rows(in, in.x, head, chunk, scratch.delta, scratch.inputs);
        for_decays(kChunk, scratch.decay, scratch.from_start, scratch.to_end, [](int64_t, int64_t, Vec) {});
        scale_rows(scratch.to_end, kChunk, in.pp, scratch.inputs);
        advance_state(in, scratch.B, scratch.inputs, kChunk, scratch.from_start[kChunk - 1], S_of(head, k),
                      S_of(head, k + 1));
      }
    }
    for (int64_t k = chunks; k-- > 0;) {
      const Chunk chunk{span_begin + k * kChunk, std::min(kChunk, span_end - span_begin - k * kChunk)};
      load_group(in, in.B, group, chunk, scratch.B);
      load_group(in, in.C, group, chunk, scratch.C);
      transpose(scratch.B, in.nn, chunk.count, n, scratch.B_transposed, kChunk);
      transpose(scratch.C, in.nn, chunk.count, n, scratch.C_transposed, kChunk);
      multiply_lower(scratch.C, in.nn, scratch.B_transposed, n, chunk.count, scratch.G);
      std::fill_n(scratch.dG, kChunk * kChunk, 0.0f);
      std::fill_n(scratch.dB_transposed, n * kChunk, 0.0f);
      std::fill_n(scratch.dC_transposed, n * kChunk, 0.0f);
      for (int64_t head = first; head < last; ++head)
        backward_chunk(in, head, chunk, S_of(head, k), scratch, dS_of(head), out);
      gradient_of_group(in, chunk, scratch, out);
    }
  }
  if (!dstate) return;
  for (int64_t head = first; head < last; ++head) store_state(in, dS_of(head), dstate + (head - first) * head_size);
}

// to = the sum of `count` rows of `from`, in order.
void add_rows(const Matrix<float>& from, const Tensor& to) {
  if (!to) return;
  to.fill_zero();
  for (int64_t row = 0; row < from.rows; ++row)
    for (int64_t i = 0; i < from.columns; ++i) to.data<float>()[i] += from[row][i];
}

void ssd_backward(const SsdBackward& args, Threads& threads) {
  const Inputs in(args);
  const SsdSizes& sizes = args.sizes;
  const Seqs& seqs = *args.seqs;
  const int64_t t = in.x.rows, n = sizes.n, head_size = n * sizes.p, state_size = sizes.m * head_size;
  const HeadBlocks blocks{sizes, kBackwardHeads};
  const std::vector<int64_t> first_span = ssd_first_spans(seqs);
  const Tensor memory = Tensor::empty({threads.count(), BackwardScratch(nullptr, in).size}, DType::f32);
  const Tensor shares = Tensor::empty({blocks.count() * t, 2 * n}, DType::f32);  // dB and dC of each block
  const int64_t D_count = args.D ? args.D.count() : sizes.m;
  // A row a sequence: dA_log, ddt_bias, dD.
  const Tensor sums = Tensor::zeros({seqs.count(), 2 * sizes.m + D_count}, DType::f32);

  threads.parallel(seqs.count() * blocks.count(), [&](int64_t task, int worker) {
    const auto s = static_cast<size_t>(task / blocks.count());
    const int64_t block = task % blocks.count(), first = blocks.begin(block);
    const int64_t begin = seqs.offsets[s], end = seqs.offsets[s + 1];
    if (begin == end) return;
    const Tensor share = shares.rows(block * t, (block + 1) * t);
    float* own = sums.matrix<float>()[static_cast<int64_t>(s)];
    const BackwardOut out{.dy = args.dy.matrix<float>(),
                          .dx = args.dx.matrix<float>(),
                          .ddt = args.ddt.matrix<float>(),
                          .dB = share.columns(0, n).matrix<float>(),
                          .dC = share.columns(n, 2 * n).matrix<float>(),
                          .dA_log = own,
                          .ddt_bias = own + sizes.m,
                          .dD = own + 2 * sizes.m};
    backward_sequence(
        in, begin, end, first, blocks.end(block),
        args.starts.data<float>() + first_span[s] * state_size + first * head_size,
        args.dstate ? args.dstate.data<float>() + seqs.slots[s] * state_size + first * head_size : nullptr,
        BackwardScratch(memory.matrix<float>()[worker], in), out);
  });

  add_rows(sums.columns(0, sizes.m).matrix<float>(), args.dA_log);
  add_rows(sums.columns(sizes.m, 2 * sizes.m).matrix<float>(), args.ddt_bias);
  add_rows(sums.columns(2 * sizes.m, 2 * sizes.m + D_count).matrix<float>(), args.dD);
  const auto dB = args.dB.matrix<float>(), dC = args.dC.matrix<float>(), all = shares.matrix<float>();
  constexpr int64_t kRows = 64;
  threads.parallel((t + kRows - 1) / kRows, [&](int64_t rows, int) {
    for (int64_t row = rows * kRows; row < std::min(t, (rows + 1) * kRows); ++row) {
      for (int64_t g = 0; g < sizes.g; ++g) {
        for (int64_t k = 0; k < 2 * n; ++k) {
          float sum = 0;
          for (int64_t block = g * blocks.blocks_of_group(); block < (g + 1) * blocks.blocks_of_group(); ++block)
            sum += all[block * t + row][k];
          if (k < n && dB) dB[row][g * n + k] = sum;
          if (k >= n && dC) dC[row][g * n + k - n] = sum;
        }
      }
    }
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(ssd_backward);

void ssd_backward(const SsdBackward& args, Threads& threads) { HWY_DYNAMIC_DISPATCH(ssd_backward)(args, threads); }
}  // namespace ssm::cpu
#endif
