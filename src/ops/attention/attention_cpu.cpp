// attention on the CPU. A task is a head and some consecutive rows of a sequence: the scores of those rows by a matrix
// product on one thread, softmax by SIMD over keys, the values by a second product. One or a few rows (writing) go key
// by key. The backward's task is a group of a sequence, whose keys' gradients nobody else adds to. Which rows make a
// task depends on the sequence alone, so no bit depends on threads or neighbours. Equations: attention.h, README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention/attention_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/attention/attention.h"
#include "ops/linear/gemm.h"
#include "ops/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

// Scores of a task: 1 MiB, half a second-level cache, but at least so many rows that the keys are read for, and no more
// than make a product efficient: above 128 the half of the last block that the mask wastes would grow.
constexpr int64_t kScores = int64_t{1} << 18, kLeastRows = 16, kMostRows = 128;
// Up to so many rows a product reads the keys no faster than dot products do.
constexpr int64_t kFewRows = 4;

using Tag = hn::ScalableTag<float>;

// Some rows of a sequence and what they see.
struct Tile {
  int64_t s, head, begin, rows;
  int64_t keys;  // of the last row
};

int64_t rows_of_tile(int64_t keys) { return std::clamp(kScores / std::max<int64_t>(1, keys), kLeastRows, kMostRows); }

Matrix<float> rows_of(const Matrix<float>& all, int64_t begin, int64_t rows) {
  return {all[begin], rows, all.columns, all.stride};
}

// Tiles of the rows of sequence s, for one head.
void add_tiles(const AttentionSizes& sizes, const Seqs& seqs, int64_t s, int64_t head, std::vector<Tile>& tiles) {
  const int64_t length = seqs.length(s), before = sizes.before[static_cast<size_t>(s)];
  const int64_t most = length <= kFewRows ? kFewRows : rows_of_tile(before + length);
  for (int64_t begin = 0; begin < length; begin += most) {
    const int64_t rows = std::min(most, length - begin);
    tiles.push_back({s, head, begin, rows, before + begin + rows});
  }
}

HWY_INLINE float dot(const float* a, const float* b, int64_t p) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  for (int64_t c = 0; c < p; c += lanes) {
    const auto count = static_cast<size_t>(p - c);
    sum = hn::MulAdd(load_up_to(d, a + c, count), load_up_to(d, b + c, count), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// row[j] = scale row[j] + slope (j - last), j <= last: (2).
HWY_INLINE void bias_scores(float* row, int64_t last, float scale, float slope) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto first = hn::Iota(d, 0);
  for (int64_t j = 0; j <= last; j += lanes) {
    const auto count = static_cast<size_t>(last + 1 - j);
    const auto distance = hn::Add(first, hn::Set(d, static_cast<float>(j - last)));
    const auto score = hn::Mul(load_up_to(d, row + j, count), hn::Set(d, scale));
    store_up_to(d, hn::MulAdd(distance, hn::Set(d, slope), score), row + j, count);
  }
}

// row[j] = exp(row[j] - shift); returns their sum.
HWY_INLINE float exponentials(float* row, int64_t last, float shift) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  for (int64_t j = 0; j <= last; j += lanes) {
    const auto count = static_cast<size_t>(last + 1 - j);
    const auto x = hn::Mul(hn::Sub(load_up_to(d, row + j, count), hn::Set(d, shift)), hn::Set(d, kLog2E));
    const auto e = exp2_nonpositive(d, x);
    sum = hn::Add(sum, count >= static_cast<size_t>(lanes) ? e : hn::IfThenElseZero(hn::FirstN(d, count), e));
    store_up_to(d, e, row + j, count);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// A NaN among the scores is the largest, as it must be seen in the result.
HWY_INLINE float largest_of(const float* row, int64_t last) {
  float largest = row[0];
  for (int64_t j = 1; j <= last; ++j) largest = row[j] > largest || row[j] != row[j] ? row[j] : largest;
  return largest;
}

// Scores become exp(S - the largest): (2), (3) before the division. Returns their sum.
HWY_INLINE float weigh(const AttentionSizes& sizes, int64_t head, float* row, int64_t last) {
  bias_scores(row, last, static_cast<float>(sizes.scale), static_cast<float>(sizes.slopes[static_cast<size_t>(head)]));
  return exponentials(row, last, largest_of(row, last));
}

void forward_tile(const AttentionForward& args, const Tile& tile, float* scores) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t group = sizes.group_of(tile.head), p = sizes.p;
  const auto rows = [&](const Tensor& all) {
    return rows_of(head_of<float>(all, sizes, args.seqs, tile.s, tile.head), tile.begin, tile.rows);
  };
  const auto seen = [&](const Tensor& all) {
    return rows_of(keys_of<float>(all, sizes, args.seqs, tile.s, group), 0, tile.keys);
  };
  const auto q = rows(args.q), out = rows(args.out), keys = seen(args.k), values = seen(args.v);
  const Matrix<float> P{scores, tile.rows, tile.keys, tile.keys};
  const bool few = args.seqs.length(tile.s) <= kFewRows;
  Threads alone(1);
  if (!few) gemm(q, Transpose::no, keys, Transpose::yes, P, false, alone);
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t last = tile.keys - tile.rows + i;
    float* row = P[i];
    if (few)
      for (int64_t j = 0; j <= last; ++j) row[j] = dot(q[i], keys[j], p);
    const float inverse = 1 / weigh(sizes, tile.head, row, last);
    if (!few) {
      for (int64_t j = 0; j <= last; ++j) row[j] *= inverse;
      std::fill(row + last + 1, row + tile.keys, 0.0f);
      continue;
    }
    for (int64_t c = 0; c < p; c += lanes) {
      const auto count = static_cast<size_t>(p - c);
      auto total = hn::Zero(d);
      for (int64_t j = 0; j <= last; ++j)
        total = hn::MulAdd(hn::Set(d, row[j]), load_up_to(d, values[j] + c, count), total);
      store_up_to(d, hn::Mul(total, hn::Set(d, inverse)), out[i] + c, count);
    }
  }
  if (!few) gemm(P, Transpose::no, values, Transpose::no, out, false, alone);
}

void attention_forward(const AttentionForward& args, Threads& threads) {
  std::vector<Tile> tiles;
  int64_t most = 0;
  for (int64_t s = 0; s < args.seqs.count(); ++s)
    for (int64_t head = 0; head < args.sizes.heads; ++head) add_tiles(args.sizes, args.seqs, s, head, tiles);
  for (const Tile& tile : tiles) most = std::max(most, tile.rows * tile.keys);
  const Tensor scores = Tensor::empty({threads.count(), most}, DType::f32);
  threads.parallel(static_cast<int64_t>(tiles.size()), [&](int64_t task, int worker) {
    forward_tile(args, tiles[static_cast<size_t>(task)], scores.data<float>() + worker * most);
  });
}

// (5) to (7) for the rows of a tile; P and dP are (rows, keys).
void backward_tile(const AttentionBackward& args, const Tile& tile, float* scratch) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t group = sizes.group_of(tile.head);
  const auto rows = [&](const Tensor& all) {
    return rows_of(head_of<float>(all, sizes, args.seqs, tile.s, tile.head), tile.begin, tile.rows);
  };
  const auto seen = [&](const Tensor& all) {
    return rows_of(keys_of<float>(all, sizes, args.seqs, tile.s, group), 0, tile.keys);
  };
  const auto q = rows(args.q), dout = rows(args.dout), dq = rows(args.dq);
  const auto keys = seen(args.k), values = seen(args.v), dk = seen(args.dk), dv = seen(args.dv);
  const Matrix<float> P{scratch, tile.rows, tile.keys, tile.keys},
      dP{scratch + tile.rows * tile.keys, tile.rows, tile.keys, tile.keys};
  Threads alone(1);
  gemm(q, Transpose::no, keys, Transpose::yes, P, false, alone);
  gemm(dout, Transpose::no, values, Transpose::yes, dP, false, alone);  // (5)
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t last = tile.keys - tile.rows + i;
    const float inverse = 1 / weigh(sizes, tile.head, P[i], last);
    for (int64_t j = 0; j <= last; ++j) P[i][j] *= inverse;
    // Of the same P and dP as they are used, so that their difference keeps its digits where it nearly vanishes.
    const auto shared = hn::Set(d, dot(P[i], dP[i], last + 1)), scale = hn::Set(d, static_cast<float>(sizes.scale));
    for (int64_t j = 0; j <= last; j += lanes) {  // (6)
      const auto count = static_cast<size_t>(last + 1 - j);
      const auto slope = hn::Sub(load_up_to(d, dP[i] + j, count), shared);
      store_up_to(d, hn::Mul(hn::Mul(load_up_to(d, P[i] + j, count), slope), scale), dP[i] + j, count);
    }
    std::fill(P[i] + last + 1, P[i] + tile.keys, 0.0f);
    std::fill(dP[i] + last + 1, dP[i] + tile.keys, 0.0f);
  }
  gemm(dP, Transpose::no, keys, Transpose::no, dq, false, alone);
  gemm(dP, Transpose::yes, q, Transpose::no, dk, true, alone);
  gemm(P, Transpose::yes, dout, Transpose::no, dv, true, alone);
}

void attention_backward(const AttentionBackward& args, Threads& threads) {
  const AttentionSizes& sizes = args.sizes;
  std::vector<std::vector<Tile>> tasks;
  int64_t most = 0;
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const int64_t shared = sizes.heads / sizes.groups;
      std::vector<Tile>& tiles = tasks.emplace_back();
      for (int64_t head = group * shared; head < (group + 1) * shared; ++head)
        add_tiles(sizes, args.seqs, s, head, tiles);
      for (const Tile& tile : tiles) most = std::max(most, 2 * tile.rows * tile.keys);
    }
  }
  const Tensor scratch = Tensor::empty({threads.count(), most}, DType::f32);
  threads.parallel(static_cast<int64_t>(tasks.size()), [&](int64_t task, int worker) {
    for (const Tile& tile : tasks[static_cast<size_t>(task)])
      backward_tile(args, tile, scratch.data<float>() + worker * most);
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(attention_forward);
HWY_EXPORT(attention_backward);

void attention_forward(const AttentionForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(attention_forward)(args, threads);
}

void attention_backward(const AttentionBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(attention_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
