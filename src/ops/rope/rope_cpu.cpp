// rope with SIMD over the pairs of a head and threads over rows. Angles are made in f64, once a row for all its heads:
// in f32 a position of a million would be off by a tenth of a turn.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rope/rope_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/rope/rope.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Rows of one task: some 64 x 64 sines, about 100 us.
constexpr int64_t kRopeRows = 64;

// One head, pairs apart by half of `dim`.
HWY_INLINE void turn_halves(const float* from, float* to, const float* cosine, const float* sine, int64_t half) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < half; i += lanes) {
    const auto count = static_cast<size_t>(half - i);
    const auto a = load_up_to(d, from + i, count), b = load_up_to(d, from + half + i, count);
    const auto c = load_up_to(d, cosine + i, count), s = load_up_to(d, sine + i, count);
    store_up_to(d, hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), to + i, count);
    store_up_to(d, hn::MulAdd(b, c, hn::Mul(a, s)), to + half + i, count);
  }
}

void rope_turn(const RopeTurn& args, Threads& threads) {
  const auto x = args.x.matrix<float>(), y = args.y.matrix<float>();
  const Rotation& r = args.rotation;
  const int64_t p = x.columns / args.heads, half = r.dim / 2;
  std::vector<double> rates;
  for (int64_t i = 0; i < half; ++i)
    rates.push_back(std::pow(r.base, -static_cast<double>(2 * i) / static_cast<double>(r.dim)));
  std::vector<double> positions(static_cast<size_t>(x.rows));
  for (int64_t s = 0; s < args.seqs.count(); ++s)
    for (int64_t row = 0; row < args.seqs.length(s); ++row)
      positions[static_cast<size_t>(args.seqs.offsets[static_cast<size_t>(s)] + row)] =
          static_cast<double>(args.before[static_cast<size_t>(s)] + row);
  threads.parallel((x.rows + kRopeRows - 1) / kRopeRows, [&](int64_t task, int) {
    std::vector<float> cosine(static_cast<size_t>(half)), sine(static_cast<size_t>(half));
    for (int64_t t = task * kRopeRows; t < std::min(x.rows, (task + 1) * kRopeRows); ++t) {
      for (size_t i = 0; i < rates.size(); ++i) {
        const double angle = positions[static_cast<size_t>(t)] * rates[i];
        cosine[i] = static_cast<float>(std::cos(angle));
        sine[i] = static_cast<float>(args.back ? -std::sin(angle) : std::sin(angle));
      }
      for (int64_t head = 0; head < args.heads; ++head) {
        const float* from = x[t] + head * p;
        float* to = y[t] + head * p;
        std::copy(from + r.dim, from + p, to + r.dim);
        if (!r.interleaved) {
          turn_halves(from, to, cosine.data(), sine.data(), half);
          continue;
        }
        for (int64_t i = 0; i < half; ++i) {
          const float a = from[2 * i], b = from[2 * i + 1], c = cosine[static_cast<size_t>(i)],
                      s = sine[static_cast<size_t>(i)];
          to[2 * i] = a * c - b * s;
          to[2 * i + 1] = b * c + a * s;
        }
      }
    }
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(rope_turn);

void rope_turn(const RopeTurn& args, Threads& threads) { HWY_DYNAMIC_DISPATCH(rope_turn)(args, threads); }
}  // namespace ssm::cpu
#endif
