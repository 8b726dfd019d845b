// The definition of rope in plain loops, f32 and f64. Equations: rope.h.
#include <cmath>

#include "ops/rope/rope.h"

namespace ssm::ref {
namespace {

template <class T>
void turn(const RopeTurn& args) {
  const auto x = args.x.matrix<T>(), y = args.y.matrix<T>();
  const Rotation& r = args.rotation;
  const int64_t p = x.columns / args.heads, half = r.dim / 2;
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    for (int64_t row = 0; row < args.seqs.length(s); ++row) {
      const int64_t t = args.seqs.offsets[static_cast<size_t>(s)] + row;
      const auto position = static_cast<double>(args.before[static_cast<size_t>(s)] + row);
      for (int64_t head = 0; head < args.heads; ++head) {
        const T* from = x[t] + head * p;
        T* to = y[t] + head * p;
        for (int64_t c = r.dim; c < p; ++c) to[c] = from[c];
        for (int64_t i = 0; i < half; ++i) {
          const double angle = position * std::pow(r.base, -static_cast<double>(2 * i) / static_cast<double>(r.dim));
          const T cosine = T(std::cos(angle)), sine = T(args.back ? -std::sin(angle) : std::sin(angle));
          const int64_t a = r.interleaved ? 2 * i : i, b = r.interleaved ? 2 * i + 1 : i + half;  // (3)
          const T from_a = from[a], from_b = from[b];
          to[a] = from_a * cosine - from_b * sine;  // (2)
          to[b] = from_b * cosine + from_a * sine;
        }
      }
    }
  }
}

}  // namespace

void rope_turn(const RopeTurn& args, Threads&) {
  args.x.dtype() == DType::f64 ? turn<double>(args) : turn<float>(args);
}

}  // namespace ssm::ref
