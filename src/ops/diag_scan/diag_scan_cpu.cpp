// diag_scan with SIMD over channels and threads over blocks of them. Without f and g the modes do not meet, so a mode
// stays in registers for a whole span of tokens; with them, every token needs all modes twice. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/diag_scan/diag_scan_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "ops/diag_scan/diag_scan.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;

// A task: a cache line of every row of u and y.
constexpr int64_t kBlock = 16;
// Below this many (token, channel, mode) waking a thread costs more than it brings: decoding.
constexpr int64_t kOneTask = 1 << 16;

// A complex number in each lane. A real system has no imaginary parts, and no code for them.
template <int kParts>
struct Number {
  Vec part[kParts];
};

// to += a b, and to += conj(a) b.
template <int kParts>
HWY_INLINE void add_product(const Number<kParts>& a, const Number<kParts>& b, Number<kParts>& to) {
  to.part[0] = hn::MulAdd(a.part[0], b.part[0], to.part[0]);
  if constexpr (kParts == 2) {
    to.part[0] = hn::NegMulAdd(a.part[1], b.part[1], to.part[0]);
    to.part[1] = hn::MulAdd(a.part[0], b.part[1], to.part[1]);
    to.part[1] = hn::MulAdd(a.part[1], b.part[0], to.part[1]);
  }
}
template <int kParts>
HWY_INLINE void add_conjugate_product(const Number<kParts>& a, const Number<kParts>& b, Number<kParts>& to) {
  to.part[0] = hn::MulAdd(a.part[0], b.part[0], to.part[0]);
  if constexpr (kParts == 2) {
    to.part[0] = hn::MulAdd(a.part[1], b.part[1], to.part[0]);
    to.part[1] = hn::MulAdd(a.part[0], b.part[1], to.part[1]);
    to.part[1] = hn::NegMulAdd(a.part[1], b.part[0], to.part[1]);
  }
}
// sum + Re(a b), and sum + Re(conj(a) b).
template <int kParts>
HWY_INLINE Vec add_real(const Number<kParts>& a, const Number<kParts>& b, Vec sum) {
  sum = hn::MulAdd(a.part[0], b.part[0], sum);
  if constexpr (kParts == 2) sum = hn::NegMulAdd(a.part[1], b.part[1], sum);
  return sum;
}
template <int kParts>
HWY_INLINE Vec add_conjugate_real(const Number<kParts>& a, const Number<kParts>& b, Vec sum) {
  for (int p = 0; p < kParts; ++p) sum = hn::MulAdd(a.part[p], b.part[p], sum);
  return sum;
}
// to += a v with v real, and to += conj(a) v.
template <int kParts>
HWY_INLINE void add_scaled(const Number<kParts>& a, Vec v, Number<kParts>& to) {
  for (int p = 0; p < kParts; ++p) to.part[p] = hn::MulAdd(a.part[p], v, to.part[p]);
}
template <int kParts>
HWY_INLINE void add_conjugate_scaled(const Number<kParts>& a, Vec v, Number<kParts>& to) {
  to.part[0] = hn::MulAdd(a.part[0], v, to.part[0]);
  if constexpr (kParts == 2) to.part[1] = hn::NegMulAdd(a.part[1], v, to.part[1]);
}

// Some adjacent channels, at most a vector: how their parts of tensors are reached.
struct Lanes {
  int64_t first, n, e;
  size_t count;

  template <int kParts>
  HWY_INLINE Number<kParts> load(const float* from, int64_t k) const {  // mode k of (parts, n, e)
    Number<kParts> number;
    for (int p = 0; p < kParts; ++p) number.part[p] = load_up_to(Tag(), from + (p * n + k) * e + first, count);
    return number;
  }
};

// The same in a vector's own memory: (n, parts, lanes).
template <int kParts>
HWY_INLINE Number<kParts> get(const float* from, int64_t k) {
  Number<kParts> number;
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  for (int p = 0; p < kParts; ++p) number.part[p] = hn::LoadU(Tag(), from + (k * kParts + p) * lanes);
  return number;
}
template <int kParts>
HWY_INLINE void put(const Number<kParts>& number, float* to, int64_t k) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  for (int p = 0; p < kParts; ++p) hn::StoreU(number.part[p], Tag(), to + (k * kParts + p) * lanes);
}

template <int kParts>
void pack(const Lanes& lanes, const float* from, float* to) {  // zeros without `from`
  if (!from) return static_cast<void>(std::fill_n(to, lanes.n * kParts * static_cast<int64_t>(hn::Lanes(Tag())), 0.0f));
  for (int64_t k = 0; k < lanes.n; ++k) put(lanes.load<kParts>(from, k), to, k);
}
template <int kParts>
void unpack(const Lanes& lanes, const float* from, float* to) {
  for (int64_t k = 0; k < lanes.n; ++k) {
    const Number<kParts> number = get<kParts>(from, k);
    for (int p = 0; p < kParts; ++p)
      store_up_to(Tag(), number.part[p], to + (p * lanes.n + k) * lanes.e + lanes.first, lanes.count);
  }
}

// Rows [begin, begin + tokens) of a (t, e) matrix, packed.
void pack_rows(const Lanes& lanes, const Matrix<float>& from, int64_t begin, int64_t tokens, float* to) {
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  for (int64_t t = 0; t < tokens; ++t)
    hn::StoreU(load_up_to(Tag(), from[begin + t] + lanes.first, lanes.count), Tag(), to + t * width);
}
void unpack_rows(const Lanes& lanes, const float* from, int64_t begin, int64_t tokens, const Matrix<float>& to) {
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  for (int64_t t = 0; t < tokens; ++t)
    store_up_to(Tag(), hn::LoadU(Tag(), from + t * width), to[begin + t] + lanes.first, lanes.count);
}

// z, b, c, f, g of a vector's channels, packed.
struct Coefficients {
  const float *z, *b, *c, *f, *g;
};

// (2) and (3) for kModes modes from k on, over a span. `y` is added to unless null.
template <int kParts, int kModes>
HWY_INLINE void run_modes(const Coefficients& s, int64_t k, int64_t tokens, const float* u, float* x, float* y) {
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  Number<kParts> z[kModes], b[kModes], c[kModes], state[kModes];
  for (int m = 0; m < kModes; ++m) {
    z[m] = get<kParts>(s.z, k + m);
    b[m] = get<kParts>(s.b, k + m);
    c[m] = get<kParts>(s.c, k + m);
    state[m] = get<kParts>(x, k + m);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const Vec input = hn::LoadU(Tag(), u + t * width);
    for (int m = 0; m < kModes; ++m) {
      Number<kParts> change;
      for (int p = 0; p < kParts; ++p) change.part[p] = hn::Mul(b[m].part[p], input);
      add_product(z[m], state[m], change);
      for (int p = 0; p < kParts; ++p) state[m].part[p] = hn::Add(state[m].part[p], change.part[p]);
    }
    if (!y) continue;
    Vec sum = hn::LoadU(Tag(), y + t * width);
    for (int m = 0; m < kModes; ++m) sum = add_real(c[m], state[m], sum);
    hn::StoreU(sum, Tag(), y + t * width);
  }
  for (int m = 0; m < kModes; ++m) put(state[m], x, k + m);
}

// (1) to (3) for one token of a system with f and g; returns kappa. x (n, 2, lanes) becomes `after`.
HWY_INLINE Vec run_token(const Coefficients& s, int64_t n, Vec u, const float* x, float* after, Vec* y) {
  Vec kappa = hn::Zero(Tag());
  for (int64_t k = 0; k < n; ++k) kappa = add_real(get<2>(s.f, k), get<2>(x, k), kappa);
  const Vec back = hn::Neg(kappa);
  for (int64_t k = 0; k < n; ++k) {
    Number<2> state = get<2>(x, k), change{{hn::Zero(Tag()), hn::Zero(Tag())}};
    add_scaled(get<2>(s.b, k), u, change);
    add_scaled(get<2>(s.g, k), back, change);
    add_product(get<2>(s.z, k), state, change);
    for (int p = 0; p < 2; ++p) state.part[p] = hn::Add(state.part[p], change.part[p]);
    put(state, after, k);
    if (y) *y = add_real(get<2>(s.c, k), state, *y);
  }
  return kappa;
}

template <int kParts>
void run_span(const Coefficients& s, int64_t n, int64_t tokens, const float* u, float* x, float* y) {
  if (s.f) {
    const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
    for (int64_t t = 0; t < tokens; ++t) {
      Vec sum = y ? hn::LoadU(Tag(), y + t * width) : hn::Zero(Tag());
      run_token(s, n, hn::LoadU(Tag(), u + t * width), x, x, y ? &sum : nullptr);
      if (y) hn::StoreU(sum, Tag(), y + t * width);
    }
    return;
  }
  int64_t k = 0;  // two modes at a time: each waits for itself only
  for (; k + 2 <= n; k += 2) run_modes<kParts, 2>(s, k, tokens, u, x, y);
  for (; k < n; ++k) run_modes<kParts, 1>(s, k, tokens, u, x, y);
}

// The memory of one worker, in pieces.
class Scratch {
 public:
  Scratch(const Tensor& all, int worker) : next_(all.matrix<float>()[worker]) {}
  float* take(int64_t floats) { return std::exchange(next_, next_ + floats); }

 private:
  float* next_;
};

// Packs the coefficients of a vector's channels.
template <int kParts>
Coefficients coefficients(const auto& args, const Lanes& lanes, int64_t row, Scratch& scratch) {
  const auto packed = [&](const Tensor& from) -> const float* {
    if (!from) return nullptr;
    float* to = scratch.take(row);
    pack<kParts>(lanes, from.template data<float>(), to);
    return to;
  };
  return {packed(args.z), packed(args.b), packed(args.c), packed(args.f), packed(args.g)};
}

// Calls body(lanes, worker) for vectors that cover all channels, a block a task.
template <class Body>
void for_vectors(const Tensor& z, int64_t tokens, Threads& threads, const Body& body) {
  const int64_t n = z.size(1), e = z.size(2), blocks = (e + kBlock - 1) / kBlock;
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  const bool alone = tokens * e * n <= kOneTask;
  const auto run_block = [&](int64_t block, int worker) {
    const int64_t end = std::min(e, (block + 1) * kBlock);
    for (int64_t c = block * kBlock; c < end; c += width)
      body(Lanes{c, n, e, static_cast<size_t>(std::min(width, end - c))}, worker);
  };
  if (alone)
    for (int64_t block = 0; block < blocks; ++block) run_block(block, 0);
  else
    threads.parallel(blocks, run_block);
}

template <int kParts>
void forward(const DiagScanForward& args, Threads& threads) {
  const Seqs& seqs = *args.seqs;
  const auto u = args.u.matrix<float>(), y = args.y.matrix<float>();
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  const int64_t n = args.z.size(1), e = args.z.size(2), row = kParts * n * width;
  const Tensor memory = Tensor::empty({threads.count(), 6 * row + 2 * kDiagScanSpan * width}, DType::f32);
  for_vectors(args.z, u.rows, threads, [&](const Lanes& lanes, int worker) {
    Scratch scratch(memory, worker);
    const Coefficients system = coefficients<kParts>(args, lanes, row, scratch);
    float *x = scratch.take(row), *inputs = scratch.take(kDiagScanSpan * width),
          *outputs = y ? scratch.take(kDiagScanSpan * width) : nullptr;
    const Vec D = args.D ? load_up_to(Tag(), args.D.data<float>() + lanes.first, lanes.count) : hn::Zero(Tag());
    for (size_t s = 0; s < seqs.slots.size(); ++s) {
      float* carried = args.state ? args.state.data<float>() + seqs.slots[s] * kParts * n * e : nullptr;
      pack<kParts>(lanes, carried, x);
      for (int64_t t = seqs.offsets[s]; t < seqs.offsets[s + 1]; t += kDiagScanSpan) {
        const int64_t tokens = std::min(kDiagScanSpan, seqs.offsets[s + 1] - t);
        if (args.starts)
          unpack<kParts>(lanes, x,
                         args.starts.data<float>() + (diag_scan_first_span(seqs, static_cast<int64_t>(s)) +
                                                      (t - seqs.offsets[s]) / kDiagScanSpan) *
                                                         kParts * n * e);
        pack_rows(lanes, u, t, tokens, inputs);
        for (int64_t i = 0; outputs && i < tokens; ++i)
          hn::StoreU(hn::Mul(D, hn::LoadU(Tag(), inputs + i * width)), Tag(), outputs + i * width);
        run_span<kParts>(system, n, tokens, inputs, x, outputs);
        if (outputs) unpack_rows(lanes, outputs, t, tokens, y);
      }
      if (carried) unpack<kParts>(lanes, x, carried);
    }
  });
}

// What the backward of a span reads and adds to; rows are (tokens, lanes).
struct Span {
  int64_t n, tokens;
  const float *u, *dy;
  float *x, *later, *du;          // (n, parts, lanes): the states before the span; the gradient from behind it; and du
  float* path;                    // scratch: states of one mode, or of all
  float *dz, *db, *dc, *df, *dg;  // (n, parts, lanes) sums
};

// (4) to (6) for mode k alone.
template <int kParts>
HWY_INLINE void reverse_mode(const Coefficients& s, const Span& span, int64_t k) {
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  const Number<kParts> z = get<kParts>(s.z, k), b = get<kParts>(s.b, k), c = get<kParts>(s.c, k);
  Number<kParts> x = get<kParts>(span.x, k);
  put(x, span.path, 0);
  for (int64_t t = 0; t < span.tokens; ++t) {
    Number<kParts> change;
    for (int p = 0; p < kParts; ++p) change.part[p] = hn::Mul(b.part[p], hn::LoadU(Tag(), span.u + t * width));
    add_product(z, x, change);
    for (int p = 0; p < kParts; ++p) x.part[p] = hn::Add(x.part[p], change.part[p]);
    put(x, span.path, t + 1);
  }
  Number<kParts> G = get<kParts>(span.later, k), dz = get<kParts>(span.dz, k), db = get<kParts>(span.db, k),
                 dc = get<kParts>(span.dc, k);
  for (int64_t t = span.tokens - 1; t >= 0; --t) {
    const Vec dy = hn::LoadU(Tag(), span.dy + t * width), u = hn::LoadU(Tag(), span.u + t * width);
    const Number<kParts> before = get<kParts>(span.path, t);
    add_conjugate_scaled(c, dy, G);  // (4)
    add_conjugate_scaled(x, dy, dc);
    add_scaled(G, u, db);
    add_conjugate_product(before, G, dz);
    hn::StoreU(add_conjugate_real(b, G, hn::LoadU(Tag(), span.du + t * width)), Tag(), span.du + t * width);  // (5)
    Number<kParts> next = G;
    add_conjugate_product(z, G, next);
    G = next;
    x = before;
  }
  put(G, span.later, k);
  put(dz, span.dz, k);
  put(db, span.db, k);
  put(dc, span.dc, k);
}

// (4) to (7) for all modes, a token at a time.
void reverse_low_rank(const Coefficients& s, const Span& span) {
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  const int64_t n = span.n, row = 2 * n * width;
  float *path = span.path, *kappas = span.path + (span.tokens + 1) * row;
  std::copy_n(span.x, row, path);
  for (int64_t t = 0; t < span.tokens; ++t)
    hn::StoreU(run_token(s, n, hn::LoadU(Tag(), span.u + t * width), path + t * row, path + (t + 1) * row, nullptr),
               Tag(), kappas + t * width);
  const auto sum_into = [](float* sums, int64_t k, const auto& add) {
    Number<2> sum = get<2>(sums, k);
    add(sum);
    put(sum, sums, k);
  };
  for (int64_t t = span.tokens - 1; t >= 0; --t) {
    const Vec dy = hn::LoadU(Tag(), span.dy + t * width), u = hn::LoadU(Tag(), span.u + t * width);
    const Vec back = hn::Neg(hn::LoadU(Tag(), kappas + t * width));
    const float *before = path + t * row, *now = before + row;
    Vec du = hn::LoadU(Tag(), span.du + t * width), dkappa = hn::Zero(Tag());
    for (int64_t k = 0; k < n; ++k) {
      Number<2> G = get<2>(span.later, k);
      add_conjugate_scaled(get<2>(s.c, k), dy, G);  // (4)
      sum_into(span.dc, k, [&](Number<2>& sum) { add_conjugate_scaled(get<2>(now, k), dy, sum); });
      sum_into(span.db, k, [&](Number<2>& sum) { add_scaled(G, u, sum); });
      sum_into(span.dz, k, [&](Number<2>& sum) { add_conjugate_product(get<2>(before, k), G, sum); });
      sum_into(span.dg, k, [&](Number<2>& sum) { add_scaled(G, back, sum); });  // (7)
      du = add_conjugate_real(get<2>(s.b, k), G, du);                           // (5)
      dkappa = add_conjugate_real(get<2>(s.g, k), G, dkappa);                   // (7), its negative
      put(G, span.later, k);
    }
    dkappa = hn::Neg(dkappa);
    for (int64_t k = 0; k < n; ++k) {
      const Number<2> G = get<2>(span.later, k);
      Number<2> next = G;
      add_conjugate_product(get<2>(s.z, k), G, next);
      add_conjugate_scaled(get<2>(s.f, k), dkappa, next);
      sum_into(span.df, k, [&](Number<2>& sum) { add_conjugate_scaled(get<2>(before, k), dkappa, sum); });  // (7)
      put(next, span.later, k);
    }
    hn::StoreU(du, Tag(), span.du + t * width);
  }
}

template <int kParts>
void backward(const DiagScanBackward& args, Threads& threads) {
  const Seqs& seqs = *args.seqs;
  const auto u = args.u.matrix<float>(), dy = args.dy.matrix<float>(), du = args.du.matrix<float>();
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  const int64_t n = args.z.size(1), e = args.z.size(2), row = kParts * n * width, rows = kDiagScanSpan * width;
  const int64_t path = args.f ? (kDiagScanSpan + 1) * row + rows : (kDiagScanSpan + 1) * kParts * width;
  const Tensor memory = Tensor::empty({threads.count(), 12 * row + 3 * rows + path}, DType::f32);
  for_vectors(args.z, u.rows, threads, [&](const Lanes& lanes, int worker) {
    Scratch scratch(memory, worker);
    const Coefficients system = coefficients<kParts>(args, lanes, row, scratch);
    float *inputs = scratch.take(rows), *seeds = scratch.take(rows);
    Span span{.n = n,
              .u = inputs,
              .dy = seeds,
              .x = scratch.take(row),
              .later = scratch.take(row),
              .du = scratch.take(rows),
              .path = scratch.take(path),
              .dz = scratch.take(row),
              .db = scratch.take(row),
              .dc = scratch.take(row)};
    if (args.f) span.df = scratch.take(row), span.dg = scratch.take(row);
    for (float* sums : {span.dz, span.db, span.dc, span.df, span.dg})
      if (sums) std::fill_n(sums, row, 0.0f);
    Vec dD = hn::Zero(Tag());
    const Vec D = args.D ? load_up_to(Tag(), args.D.data<float>() + lanes.first, lanes.count) : hn::Zero(Tag());
    for (size_t s = 0; s < seqs.slots.size(); ++s) {
      float* carried = args.dstate ? args.dstate.data<float>() + seqs.slots[s] * kParts * n * e : nullptr;
      pack<kParts>(lanes, carried, span.later);
      const int64_t length = seqs.offsets[s + 1] - seqs.offsets[s];
      for (int64_t i = (length + kDiagScanSpan - 1) / kDiagScanSpan - 1; i >= 0; --i) {
        const int64_t t = seqs.offsets[s] + i * kDiagScanSpan;
        span.tokens = std::min(kDiagScanSpan, seqs.offsets[s + 1] - t);
        pack<kParts>(
            lanes,
            args.starts.data<float>() + (diag_scan_first_span(seqs, static_cast<int64_t>(s)) + i) * kParts * n * e,
            span.x);
        pack_rows(lanes, u, t, span.tokens, inputs);
        if (dy)
          pack_rows(lanes, dy, t, span.tokens, seeds);
        else
          std::fill_n(seeds, rows, 0.0f);
        for (int64_t j = 0; j < span.tokens; ++j) {
          const Vec seed = hn::LoadU(Tag(), seeds + j * width);
          hn::StoreU(hn::Mul(D, seed), Tag(), span.du + j * width);
          dD = hn::MulAdd(seed, hn::LoadU(Tag(), inputs + j * width), dD);
        }
        if (args.f)
          reverse_low_rank(system, span);
        else
          for (int64_t k = 0; k < n; ++k) reverse_mode<kParts>(system, span, k);
        if (du) unpack_rows(lanes, span.du, t, span.tokens, du);
      }
      if (carried) unpack<kParts>(lanes, span.later, carried);
    }
    for (const auto& [sums, to] : {std::pair{span.dz, &args.dz},
                                   {span.db, &args.db},
                                   {span.dc, &args.dc},
                                   {span.df, &args.df},
                                   {span.dg, &args.dg}})
      if (sums) unpack<kParts>(lanes, sums, to->template data<float>());
    if (args.dD) store_up_to(Tag(), dD, args.dD.data<float>() + lanes.first, lanes.count);
  });
}

void diag_scan_forward(const DiagScanForward& args, Threads& threads) {
  args.z.size(0) == 2 ? forward<2>(args, threads) : forward<1>(args, threads);
}

void diag_scan_backward(const DiagScanBackward& args, Threads& threads) {
  args.z.size(0) == 2 ? backward<2>(args, threads) : backward<1>(args, threads);
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(diag_scan_forward);
HWY_EXPORT(diag_scan_backward);

void diag_scan_forward(const DiagScanForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(diag_scan_forward)(args, threads);
}

void diag_scan_backward(const DiagScanBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(diag_scan_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
