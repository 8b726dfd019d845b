// rope on a GPU: a thread turns one pair of channels in all heads of a row, so that its angle, made in f64 as
// everywhere since f32 loses the angles of far positions, serves them all. Equations: rope.h.
#include <cmath>

#include "core/cuda_kernel.cuh"
#include "ops/rope/rope.h"
#include "ops/sequence_of.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 128;

struct Turn {
  const int64_t *offsets, *before;  // before: null when all sequences begin
  int64_t sequences, tokens, heads, p, dim;
  double log2_base;
  bool interleaved, back;
};

template <class T>
__global__ void __launch_bounds__(kThreads) turn_kernel(Rows<const T> x, Rows<T> y, Turn turn) {
  const int64_t half = turn.dim / 2, lanes = half + (turn.p - turn.dim);  // pairs, then channels that pass
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, row = at / lanes, i = at % lanes;
  if (row >= turn.tokens) return;
  if (i >= half) {
    const int64_t c = turn.dim + i - half;
    for (int64_t head = 0; head < turn.heads; ++head) y[row][head * turn.p + c] = x[row][head * turn.p + c];
    return;
  }
  const int64_t s = sequence_of(turn.offsets, turn.sequences, row);
  const auto position = static_cast<double>(row - turn.offsets[s] + (turn.before ? turn.before[s] : 0));
  const double rate = exp2(-turn.log2_base * static_cast<double>(2 * i) / static_cast<double>(turn.dim));  // (1)
  double exact_sine, exact_cosine;
  sincos(position * rate, &exact_sine, &exact_cosine);
  const auto cosine = static_cast<float>(exact_cosine), sine = static_cast<float>(turn.back ? -exact_sine : exact_sine);
  const int64_t a = turn.interleaved ? 2 * i : i, b = turn.interleaved ? 2 * i + 1 : i + half;  // (3)
  for (int64_t head = 0; head < turn.heads; ++head) {
    const T* from = x[row] + head * turn.p;
    T* to = y[row] + head * turn.p;
    const float from_a = to_float(from[a]), from_b = to_float(from[b]);
    to[a] = from_float<T>(from_a * cosine - from_b * sine);  // (2)
    to[b] = from_float<T>(from_b * cosine + from_a * sine);
  }
}

}  // namespace

void rope_turn(const RopeTurn& args, Stream stream) {
  const Device& device = args.x.device();
  Tensor before;
  for (const int64_t n : args.before)
    if (n != 0 && !before) before = Tensor::of(args.before).on(device);
  const int64_t tokens = args.x.size(0), p = args.x.size(1) / args.heads, dim = args.rotation.dim;
  const Turn turn{.offsets = elements<const int64_t>(args.seqs.tables(device).offsets),
                  .before = elements<const int64_t>(before),
                  .sequences = args.seqs.count(),
                  .tokens = tokens,
                  .heads = args.heads,
                  .p = p,
                  .dim = dim,
                  .log2_base = std::log2(args.rotation.base),
                  .interleaved = args.rotation.interleaved,
                  .back = args.back};
  const int64_t blocks = divide_up(tokens * (p - dim / 2), kThreads);
  require(blocks < (int64_t{1} << 31), "rope: ", tokens, " rows in one call; pass fewer");
  with_element(args.x.dtype(), "rope", [&]<class T>(T) {
    launch("rope", turn_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, stream, rows<const T>(args.x),
           rows<T>(args.y), turn);
  });
}

}  // namespace ssm::cuda
