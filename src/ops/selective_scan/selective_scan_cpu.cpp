// The selective scan on the CPU. Lanes are adjacent channels, so nothing is ever summed across lanes going forward, any
// number of states works, and time is walked one token after the other: an exp, a multiply and two multiply-adds a
// state. A task is one block of channels of one sequence; its states and decay rates stay in the first-level cache.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/selective_scan/selective_scan_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "ops/selective_scan/selective_scan.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;

// Channels of a forward task: states and decay rates of 16 states are 4 KiB each, and a row of a block is four cache
// lines, so that a walk down a tall matrix touches a new page once for 256 bytes.
constexpr int64_t kForwardWidth = 64;
// Vectors of channels computed together: they share the broadcast B and C, and the chains of dependent operations of
// their exponentials fill each other's gaps. As many as the registers hold; measured, one token of 1,536 channels:
// AVX-512 9.8 us with 2 and 8.0 with 4, AVX2 13.4 and 14.5.
constexpr int kMostVectors = HWY_TARGET == HWY_AVX3 ? 4 : 2;
// Channels of a backward block: see kScanChunk.
constexpr int64_t kBackwardWidth = 32;
// Backward tasks. Each sums its own share of dB and dC over channels, so this many copies of them exist for a while;
// a number of its own, because the order of a sum must not depend on the number of threads.
constexpr int64_t kBackwardTasks = 32;

// Where everything of one block of channels is. `width` channels from `first`; arrays of (n, kWidth) are padded.
struct Block {
  int64_t first, width;
  size_t channels_from(int64_t i) const { return static_cast<size_t>(width - i); }
};

template <int64_t kWidth>
void load_block(const float* from, int64_t e, int64_t states, const Block& block, float* to) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t n = 0; n < states; ++n)
    for (int64_t i = 0; i < kWidth; i += lanes)
      hn::StoreU(i < block.width ? load_up_to(d, from + n * e + block.first + i, block.channels_from(i)) : hn::Zero(d),
                 d, to + n * kWidth + i);
}

template <int64_t kWidth>
void store_block(const float* from, int64_t e, int64_t states, const Block& block, float* to) {
  for (int64_t n = 0; n < states; ++n) std::copy_n(from + n * kWidth, block.width, to + n * e + block.first);
}

// rates (n, kWidth) = A log2(e) = -exp(A_log) log2(e), transposed: then exp(delta A) is exp2(delta * rate). A
// single token pays for this as much as for its own exponentials, so whole vectors are gathered.
template <int64_t kWidth>
void load_rates(const Matrix<float>& A_log, const Block& block, float* rates) {
  const Tag d;
  const hn::RebindToSigned<Tag> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto rows = hn::Mul(hn::Iota(di, 0), hn::Set(di, static_cast<int32_t>(A_log.stride)));
  HWY_ALIGN float tail[hn::MaxLanes(d)];
  for (int64_t i = 0; i < kWidth; i += lanes) {
    for (int64_t n = 0; n < A_log.columns; ++n) {
      auto log = hn::Zero(d);
      if (i + lanes <= block.width) {
        log = hn::GatherIndex(d, A_log[block.first + i] + n, rows);
      } else {
        for (int64_t j = 0; j < lanes; ++j) tail[j] = i + j < block.width ? A_log[block.first + i + j][n] : 0.0f;
        log = hn::Load(d, tail);
      }
      const auto rate = hn::Mul(hn::Exp(d, log), hn::Set(d, -kLog2E));
      // Exp makes a number of NaN.
      hn::StoreU(hn::IfThenElse(hn::Eq(log, log), rate, log), d, rates + n * kWidth + i);
    }
  }
}

void make_rates(const Tensor& A_log, const Tensor& rates) {
  const int64_t e = A_log.size(0), states = A_log.size(1);
  HWY_ALIGN float one[kForwardWidth];
  for (int64_t first = 0; first < e; first += kForwardWidth) {
    const Block block{first, std::min(kForwardWidth, e - first)};
    for (int64_t n = 0; n < states; ++n) {
      load_rates<kForwardWidth>(A_log.columns(n, n + 1).matrix<float>(), block, one);
      std::copy_n(one, block.width, rates.data<float>() + n * e + first);
    }
  }
}

// (10) and (11) for one token and kVectors vectors of channels: advances h (n, `width` apart), returns sum_n C h in y.
template <int kVectors>
HWY_INLINE void step(const float* rates, const float* B, const float* C, int64_t states, const Vec (&delta)[kVectors],
                     const Vec (&input)[kVectors], float* h, int64_t width, Vec (&y)[kVectors]) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int v = 0; v < kVectors; ++v) y[v] = hn::Zero(d);
  for (int64_t n = 0; n < states; ++n) {
    const auto b = hn::Set(d, B[n]), c = hn::Set(d, C[n]);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t i = n * width + v * lanes;
      const auto decay = exp2_nonpositive(d, hn::Mul(delta[v], hn::LoadU(d, rates + i)));
      const auto state = hn::MulAdd(decay, hn::LoadU(d, h + i), hn::Mul(input[v], b));
      hn::StoreU(state, d, h + i);
      y[v] = hn::MulAdd(c, state, y[v]);
    }
  }
}

struct Rows {
  Matrix<float> x, dt, z, A_log, B, C;
  const float *D, *bias;
  explicit Rows(const auto& args)
      : x(args.x.template matrix<float>()),
        dt(args.dt.template matrix<float>()),
        z(args.z.template matrix<float>()),
        A_log(args.A_log.template matrix<float>()),
        B(args.B.template matrix<float>()),
        C(args.C.template matrix<float>()),
        D(args.D.template data<float>()),
        bias(args.dt_bias.template data<float>()) {}
  int64_t e() const { return x.columns; }
  int64_t states() const { return B.columns; }
};

// One token of a block from its i-th channel on: (9) to (12) for kVectors vectors.
template <int kVectors>
HWY_INLINE void forward_token(const Rows& rows, const Block& block, int64_t t, int64_t i, const float* rates, float* h,
                              int64_t width, const Matrix<float>& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vec x[kVectors], delta[kVectors], input[kVectors], y[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = i + v * lanes, c = block.first + at;
    const size_t count = block.channels_from(at);
    x[v] = load_up_to(d, rows.x[t] + c, count);
    auto raw = load_up_to(d, rows.dt[t] + c, count);
    if (rows.bias) raw = hn::Add(raw, load_up_to(d, rows.bias + c, count));
    delta[v] = softplus(d, raw);  // (9)
    input[v] = hn::Mul(delta[v], x[v]);
  }
  step<kVectors>(rates + i, rows.B[t], rows.C[t], rows.states(), delta, input, h + i, width, y);
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = i + v * lanes, c = block.first + at;
    const size_t count = block.channels_from(at);
    if (rows.D) y[v] = hn::MulAdd(load_up_to(d, rows.D + c, count), x[v], y[v]);
    if (rows.z) y[v] = hn::Mul(y[v], silu(d, load_up_to(d, rows.z[t] + c, count)));  // (12)
    store_up_to(d, y[v], out[t] + c, count);
  }
}

void selective_scan_forward(const ScanForward& args, Threads& threads) {
  const Rows rows(args);
  const Seqs& seqs = *args.seqs;
  const auto out = args.out.matrix<float>();
  const int64_t e = rows.e(), states = rows.states(), row = e * states, tile = states * kForwardWidth;
  const int64_t blocks = (e + kForwardWidth - 1) / kForwardWidth;
  std::vector<int64_t> first_chunk(static_cast<size_t>(seqs.count()), 0);  // of each sequence in `starts`
  for (size_t s = 1; s < first_chunk.size(); ++s)
    first_chunk[s] = first_chunk[s - 1] + (seqs.length(static_cast<int64_t>(s) - 1) + kScanChunk - 1) / kScanChunk;
  const Tensor scratch = Tensor::empty({threads.count(), 2 * tile}, DType::f32);  // rates and h of each worker
  float* states_in_out = args.h.data<float>();
  float* starts = args.starts.data<float>();
  const float* kept_rates = args.rates.data<float>();
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));

  // All sequences of a block one after the other: they share its rates.
  threads.parallel(seqs.count() * blocks, [&](int64_t task, int worker) {
    const auto s = static_cast<size_t>(task % seqs.count());
    const int64_t begin = seqs.offsets[s], end = seqs.offsets[s + 1];
    if (begin == end) return;
    const int64_t first = task / seqs.count() * kForwardWidth;
    const Block block{first, std::min(kForwardWidth, e - first)};
    float* carried = states_in_out ? states_in_out + seqs.slots[s] * row : nullptr;
    if (end - begin == 1 && kept_rates && carried && !starts && block.width == kForwardWidth &&
        kForwardWidth % (kMostVectors * lanes) == 0) {
      // One token of a whole block: in place, a copy would cost as much as the step.
      for (int64_t i = 0; i < kForwardWidth; i += kMostVectors * lanes)
        forward_token<kMostVectors>(rows, block, begin, i, kept_rates + first, carried + first, e, out);
      return;
    }
    float* rates = scratch.matrix<float>()[worker];
    float* h = rates + tile;
    if (kept_rates)
      load_block<kForwardWidth>(kept_rates, e, states, block, rates);
    else
      load_rates<kForwardWidth>(rows.A_log, block, rates);
    if (carried)
      load_block<kForwardWidth>(carried, e, states, block, h);
    else
      std::fill_n(h, tile, 0.0f);
    for (int64_t t = begin; t < end; ++t) {
      if (starts && (t - begin) % kScanChunk == 0)
        store_block<kForwardWidth>(h, e, states, block, starts + (first_chunk[s] + (t - begin) / kScanChunk) * row);
      int64_t i = 0;
      for (; kMostVectors == 4 && i + 3 * lanes < block.width; i += 4 * lanes)
        forward_token<4>(rows, block, t, i, rates, h, kForwardWidth, out);
      for (; i + lanes < block.width; i += 2 * lanes) forward_token<2>(rows, block, t, i, rates, h, kForwardWidth, out);
      for (; i < block.width; i += lanes) forward_token<1>(rows, block, t, i, rates, h, kForwardWidth, out);
    }
    if (carried) store_block<kForwardWidth>(h, e, states, block, carried);
  });
}

// What one worker needs to walk a chunk backward. (c, n, w) with c = kScanChunk and w = kBackwardWidth.
struct BackwardScratch {
  float *rates, *carried, *dA;  // (n, w): A log2(e); a_(t+1) g_(t+1) of (13); sum of (18) before the factor A
  float *h, *decays;            // (c + 1, n, w) with h[0] the chunk's first state; (c, n, w)
  float *delta, *y;             // (c, w): (9), and sum_n C h
  float *lanes_dB, *lanes_dC;   // (n, lanes): one token's sums, not yet summed over lanes

  static int64_t size(int64_t states) {
    const int64_t tile = states * kBackwardWidth;
    return 3 * tile + (2 * kScanChunk + 1) * tile + 2 * kScanChunk * kBackwardWidth +
           2 * states * static_cast<int64_t>(hn::MaxLanes(Tag()));
  }
  BackwardScratch(float* from, int64_t states) {
    const int64_t tile = states * kBackwardWidth;
    const auto take = [&from](int64_t count) { return std::exchange(from, from + count); };
    rates = take(tile), carried = take(tile), dA = take(tile);
    h = take((kScanChunk + 1) * tile), decays = take(kScanChunk * tile);
    delta = take(kScanChunk * kBackwardWidth), y = take(kScanChunk * kBackwardWidth);
    const auto lanes = static_cast<int64_t>(hn::MaxLanes(Tag()));
    lanes_dB = take(states * lanes), lanes_dC = take(states * lanes);
  }
};

// One token of the chunk once more, kVectors vectors from the block's i-th channel on.
template <int kVectors>
HWY_INLINE void recompute_token(const Rows& rows, const Block& block, int64_t t, int64_t k, int64_t i,
                                const BackwardScratch& scratch) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t tile = rows.states() * kBackwardWidth;
  Vec delta[kVectors], input[kVectors], y[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = i + v * lanes, c = block.first + at;
    const size_t count = block.channels_from(at);
    auto raw = load_up_to(d, rows.dt[t] + c, count);
    if (rows.bias) raw = hn::Add(raw, load_up_to(d, rows.bias + c, count));
    delta[v] = softplus(d, raw);
    input[v] = hn::Mul(delta[v], load_up_to(d, rows.x[t] + c, count));
    y[v] = hn::Zero(d);
  }
  const float* before = scratch.h + k * tile + i;
  float *now = scratch.h + (k + 1) * tile + i, *decays = scratch.decays + k * tile + i;
  for (int64_t n = 0; n < rows.states(); ++n) {
    const auto b = hn::Set(d, rows.B[t][n]), c = hn::Set(d, rows.C[t][n]);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = n * kBackwardWidth + v * lanes;
      const auto decay = exp2_nonpositive(d, hn::Mul(delta[v], hn::LoadU(d, scratch.rates + at + i)));
      const auto state = hn::MulAdd(decay, hn::LoadU(d, before + at), hn::Mul(input[v], b));
      hn::StoreU(decay, d, decays + at);
      hn::StoreU(state, d, now + at);
      y[v] = hn::MulAdd(c, state, y[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    hn::StoreU(delta[v], d, scratch.delta + k * kBackwardWidth + i + v * lanes);
    hn::StoreU(y[v], d, scratch.y + k * kBackwardWidth + i + v * lanes);
  }
}

// Where a task puts its results. Absent ones are null.
struct BackwardOut {
  Matrix<float> dout, dx, ddt, dz, out;
  Matrix<float> dB, dC;  // (t, n): this task's share
  float *dD, *dbias;     // (w): this block's sums
};

// to[n] += the sum over lanes of from[n], n < states. Four vectors at a time are transposed and added in three rounds,
// a third of the instructions of four sums.
void add_lane_sums(const float* from, int64_t states, float* to) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t n = 0;
#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE
  const hn::RepartitionToWide<Tag> wide;
  const hn::Full128<float> d4;
  const auto interleaved = [&](const float* a, const float* b) HWY_ATTR {  // (a0+a2, b0+b2, a1+a3, b1+b3) a block
    const auto va = hn::LoadU(d, a), vb = hn::LoadU(d, b);
    return hn::BitCast(wide, hn::Add(hn::InterleaveLower(d, va, vb), hn::InterleaveUpper(d, va, vb)));
  };
  for (; n + 4 <= states; n += 4) {
    const float* at = from + n * lanes;
    const auto ab = interleaved(at, at + lanes), ce = interleaved(at + 2 * lanes, at + 3 * lanes);
    const auto sums =
        hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, ab, ce)), hn::BitCast(d, hn::InterleaveUpper(wide, ab, ce)));
    HWY_ALIGN float blocks[hn::MaxLanes(d)];
    hn::Store(sums, d, blocks);
    auto total = hn::LoadU(d4, to + n);
    for (int64_t i = 0; i < lanes; i += 4) total = hn::Add(total, hn::Load(d4, blocks + i));
    hn::StoreU(total, d4, to + n);
  }
#endif
  for (; n < states; ++n) to[n] += hn::GetLane(hn::SumOfLanes(d, hn::LoadU(d, from + n * lanes)));
}

// One token, last to first, kVectors vectors from the block's i-th channel on: (13) to (19).
template <int kVectors>
HWY_INLINE void backward_token(const Rows& rows, const Block& block, int64_t t, int64_t k, int64_t i,
                               const BackwardScratch& scratch, const BackwardOut& out) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t tile = rows.states() * kBackwardWidth;
  const auto one = hn::Set(d, 1.0f);
  Vec delta[kVectors], x[kVectors], input[kVectors], dy[kVectors], dinput[kVectors], drate[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = i + v * lanes, c = block.first + at;
    const size_t count = block.channels_from(at);
    x[v] = load_up_to(d, rows.x[t] + c, count);
    delta[v] = hn::LoadU(d, scratch.delta + k * kBackwardWidth + at);
    input[v] = hn::Mul(delta[v], x[v]);
    dy[v] = load_up_to(d, out.dout[t] + c, count);
    dinput[v] = drate[v] = hn::Zero(d);
    auto y = hn::LoadU(d, scratch.y + k * kBackwardWidth + at);
    if (rows.D) y = hn::MulAdd(load_up_to(d, rows.D + c, count), x[v], y);
    if (!rows.z) {
      if (out.out) store_up_to(d, y, out.out[t] + c, count);
      continue;
    }
    const auto z = load_up_to(d, rows.z[t] + c, count), gate = sigmoid(d, z);  // (19)
    if (out.out) store_up_to(d, hn::Mul(y, hn::Mul(z, gate)), out.out[t] + c, count);
    const auto slope = hn::Mul(gate, hn::MulAdd(z, hn::Sub(one, gate), one));
    if (out.dz) store_up_to(d, hn::Mul(hn::Mul(dy[v], y), slope), out.dz[t] + c, count);
    dy[v] = hn::Mul(dy[v], hn::Mul(z, gate));
  }
  const float *before = scratch.h + k * tile + i, *now = before + tile, *decays = scratch.decays + k * tile + i;
  for (int64_t n = 0; n < rows.states(); ++n) {
    const auto B = hn::Set(d, rows.B[t][n]), C = hn::Set(d, rows.C[t][n]);
    auto dC = hn::Zero(d), dB = hn::Zero(d);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = n * kBackwardWidth + v * lanes;
      const auto g = hn::MulAdd(dy[v], C, hn::LoadU(d, scratch.carried + at + i));  // (13)
      dC = hn::MulAdd(dy[v], hn::LoadU(d, now + at), dC);                           // (14)
      dB = hn::MulAdd(g, input[v], dB);                                             // (15)
      dinput[v] = hn::MulAdd(g, B, dinput[v]);                                      // (16)
      const auto next = hn::Mul(g, hn::LoadU(d, decays + at));
      const auto decayed = hn::Mul(next, hn::LoadU(d, before + at));
      drate[v] = hn::MulAdd(decayed, hn::LoadU(d, scratch.rates + at + i), drate[v]);  // (17), still times log2(e)
      float* dA = scratch.dA + at + i;
      hn::StoreU(hn::MulAdd(decayed, delta[v], hn::LoadU(d, dA)), d, dA);  // (18)
      hn::StoreU(next, d, scratch.carried + at + i);
    }
    float *to_dC = scratch.lanes_dC + n * lanes, *to_dB = scratch.lanes_dB + n * lanes;
    hn::StoreU(i == 0 ? dC : hn::Add(dC, hn::LoadU(d, to_dC)), d, to_dC);
    hn::StoreU(i == 0 ? dB : hn::Add(dB, hn::LoadU(d, to_dB)), d, to_dB);
  }
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = i + v * lanes, c = block.first + at;
    const size_t count = block.channels_from(at);
    auto ddelta = hn::MulAdd(drate[v], hn::Set(d, 1 / kLog2E), hn::Mul(dinput[v], x[v]));
    // The derivative of softplus is sigmoid(raw) = 1 - e^-delta. That cancels for small delta, where the series
    // delta - delta^2 / 2 + delta^3 / 6 is right to f32's last bit.
    const auto exact = hn::Sub(one, exp2_nonpositive(d, hn::Mul(delta[v], hn::Set(d, -kLog2E))));
    const auto cubic = hn::MulAdd(delta[v], hn::Set(d, 1.0f / 6), hn::Set(d, -0.5f));
    const auto series = hn::Mul(delta[v], hn::MulAdd(delta[v], cubic, one));
    ddelta = hn::Mul(ddelta, hn::IfThenElse(hn::Lt(delta[v], hn::Set(d, 0.01f)), series, exact));
    if (out.ddt) store_up_to(d, ddelta, out.ddt[t] + c, count);
    if (out.dx) {
      const auto D = rows.D ? load_up_to(d, rows.D + c, count) : hn::Zero(d);
      store_up_to(d, hn::MulAdd(dinput[v], delta[v], hn::Mul(dy[v], D)), out.dx[t] + c, count);
    }
    hn::StoreU(hn::Add(ddelta, hn::LoadU(d, out.dbias + at)), d, out.dbias + at);
    hn::StoreU(hn::MulAdd(dy[v], x[v], hn::LoadU(d, out.dD + at)), d, out.dD + at);
  }
}

// Tokens [begin, end) of one chunk: forward again from scratch.h[0], then backward from scratch.carried.
void backward_chunk(const Rows& rows, const Block& block, int64_t begin, int64_t end, const BackwardScratch& scratch,
                    const BackwardOut& out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  for (int64_t t = begin; t < end; ++t) {
    int64_t i = 0;
    for (; i + lanes < block.width; i += 2 * lanes) recompute_token<2>(rows, block, t, t - begin, i, scratch);
    for (; i < block.width; i += lanes) recompute_token<1>(rows, block, t, t - begin, i, scratch);
  }
  for (int64_t t = end; t-- > begin;) {
    int64_t i = 0;
    for (; i + lanes < block.width; i += 2 * lanes) backward_token<2>(rows, block, t, t - begin, i, scratch, out);
    for (; i < block.width; i += lanes) backward_token<1>(rows, block, t, t - begin, i, scratch, out);
    add_lane_sums(scratch.lanes_dC, rows.states(), out.dC[t]);
    add_lane_sums(scratch.lanes_dB, rows.states(), out.dB[t]);
  }
}

void selective_scan_backward(const ScanBackward& args, Threads& threads) {
  const Rows rows(args);
  const Seqs& seqs = *args.seqs;
  const int64_t e = rows.e(), states = rows.states(), row = e * states, tile = states * kBackwardWidth;
  const int64_t blocks = (e + kBackwardWidth - 1) / kBackwardWidth, tasks = std::min(blocks, kBackwardTasks);
  const Tensor scratch = Tensor::empty({threads.count(), BackwardScratch::size(states)}, DType::f32);
  const Tensor shares = Tensor::empty({tasks * rows.x.rows, 2 * states}, DType::f32);  // dB and dC of each task
  const auto dA_log = args.dA_log.matrix<float>();
  const float* starts = args.starts.data<float>();
  float* dh = args.dh.data<float>();

  threads.parallel(tasks, [&](int64_t task, int worker) {
    const BackwardScratch mine(scratch.matrix<float>()[worker], states);
    const Tensor share = shares.rows(task * rows.x.rows, (task + 1) * rows.x.rows);
    share.fill_zero();
    HWY_ALIGN float dD[kBackwardWidth], dbias[kBackwardWidth];
    const BackwardOut out{.dout = args.dout.matrix<float>(),
                          .dx = args.dx.matrix<float>(),
                          .ddt = args.ddt.matrix<float>(),
                          .dz = args.dz.matrix<float>(),
                          .out = args.out.matrix<float>(),
                          .dB = share.columns(0, states).matrix<float>(),
                          .dC = share.columns(states, 2 * states).matrix<float>(),
                          .dD = dD,
                          .dbias = dbias};
    for (int64_t index = task * blocks / tasks; index < (task + 1) * blocks / tasks; ++index) {
      const int64_t first = index * kBackwardWidth;
      const Block block{first, std::min(kBackwardWidth, e - first)};
      load_rates<kBackwardWidth>(rows.A_log, block, mine.rates);
      std::fill_n(mine.dA, tile, 0.0f);
      std::fill_n(dD, kBackwardWidth, 0.0f);
      std::fill_n(dbias, kBackwardWidth, 0.0f);
      int64_t chunk = 0;  // the sequence's first row of `starts`
      for (int64_t s = 0; s < seqs.count(); ++s) {
        const int64_t begin = seqs.offsets[static_cast<size_t>(s)], length = seqs.length(s);
        if (length == 0) continue;
        float* carried = dh ? dh + seqs.slots[static_cast<size_t>(s)] * row : nullptr;
        if (carried)
          load_block<kBackwardWidth>(carried, e, states, block, mine.carried);
        else
          std::fill_n(mine.carried, tile, 0.0f);
        const int64_t chunks = (length + kScanChunk - 1) / kScanChunk;
        for (int64_t k = chunks; k-- > 0;) {
          const int64_t from = begin + k * kScanChunk, to = std::min(from + kScanChunk, begin + length);
          load_block<kBackwardWidth>(starts + (chunk + k) * row, e, states, block, mine.h);
          backward_chunk(rows, block, from, to, mine, out);
        }
        if (carried) store_block<kBackwardWidth>(mine.carried, e, states, block, carried);
        chunk += chunks;
      }
      for (int64_t i = 0; i < block.width; ++i) {
        const int64_t c = first + i;
        if (args.dD) args.dD.data<float>()[c] = dD[i];
        if (args.ddt_bias) args.ddt_bias.data<float>()[c] = dbias[i];
        for (int64_t n = 0; dA_log && n < states; ++n)
          dA_log[c][n] = mine.dA[n * kBackwardWidth + i] * mine.rates[n * kBackwardWidth + i] / kLog2E;
      }
    }
  });

  const auto dB = args.dB.matrix<float>(), dC = args.dC.matrix<float>(), all = shares.matrix<float>();
  constexpr int64_t kRows = 64;
  threads.parallel((rows.x.rows + kRows - 1) / kRows, [&](int64_t group, int) {
    for (int64_t t = group * kRows; t < std::min(rows.x.rows, (group + 1) * kRows); ++t) {
      for (int64_t n = 0; n < 2 * states; ++n) {
        float sum = 0;
        for (int64_t task = 0; task < tasks; ++task) sum += all[task * rows.x.rows + t][n];
        if (n < states && dB) dB[t][n] = sum;
        if (n >= states && dC) dC[t][n - states] = sum;
      }
    }
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(selective_scan_forward);
HWY_EXPORT(selective_scan_backward);
HWY_EXPORT(make_rates);

void scan_rates(const Tensor& A_log, const Tensor& rates) { HWY_DYNAMIC_DISPATCH(make_rates)(A_log, rates); }

void selective_scan_forward(const ScanForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(selective_scan_forward)(args, threads);
}

void selective_scan_backward(const ScanBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(selective_scan_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
