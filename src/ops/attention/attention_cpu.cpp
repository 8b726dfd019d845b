// attention on the CPU. A task is a head and some consecutive rows of a sequence: the scores of those rows by a matrix
// product on one thread, softmax by SIMD over keys, the values by a second product. A few rows (writing) are bound by
// reading keys and values: a task is a range of keys for all heads, whose rows lie side by side. The backward's task is
// a group of a sequence, whose keys' gradients nobody else adds to. What makes a task depends on its sequence alone, so
// no bit depends on threads or neighbours. Equations: attention.h, README.md.
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
// Keys of a task for few rows: 3 MiB of keys and values of 12 heads of 64, some 100 us.
constexpr int64_t kRange = 512;

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
  const int64_t most = rows_of_tile(before + length);
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

// A NaN may be passed over: its exponential and with it the sum are NaN all the same.
HWY_INLINE float largest_of(const float* row, int64_t last) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto first = hn::Set(d, row[0]);
  auto largest = first;
  for (int64_t j = 0; j <= last; j += lanes) {
    const auto count = static_cast<size_t>(last + 1 - j);
    const auto x = load_up_to(d, row + j, count);
    const bool whole = count >= static_cast<size_t>(lanes);
    largest = hn::Max(largest, whole ? x : hn::IfThenElse(hn::FirstN(d, count), x, first));
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// Scores become exp(S - the largest): (2), (3) before the division. Returns their sum.
HWY_INLINE float weigh(const AttentionSizes& sizes, int64_t head, float* row, int64_t last) {
  bias_scores(row, last, static_cast<float>(sizes.scale), static_cast<float>(sizes.slopes[static_cast<size_t>(head)]));
  return exponentials(row, last, largest_of(row, last));
}

void forward_tile(const AttentionForward& args, const Tile& tile, float* scores) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t group = sizes.group_of(tile.head);
  const auto rows = [&](const Tensor& all) {
    return rows_of(head_of<float>(all, sizes, args.seqs, tile.s, tile.head), tile.begin, tile.rows);
  };
  const auto seen = [&](const Tensor& all) {
    return rows_of(keys_of<float>(all, sizes, args.seqs, tile.s, group), 0, tile.keys);
  };
  const auto q = rows(args.q), out = rows(args.out), keys = seen(args.k), values = seen(args.v);
  const Matrix<float> P{scores, tile.rows, tile.keys, tile.keys};
  Threads alone(1);
  gemm(q, Transpose::no, keys, Transpose::yes, P, false, alone);
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t last = tile.keys - tile.rows + i;
    const float inverse = 1 / weigh(sizes, tile.head, P[i], last);
    for (int64_t j = 0; j <= last; ++j) P[i][j] *= inverse;
    std::fill(P[i] + last + 1, P[i] + tile.keys, 0.0f);
  }
  gemm(P, Transpose::no, values, Transpose::no, out, false, alone);
}

// Some keys of a sequence of few rows, and where its sums are in the scratch: for each head and row p sums of values,
// the largest score and the sum of exponentials, relative to that score.
struct Range {
  int64_t s, begin, end, sums;
};

// to += weight * from
HWY_INLINE void add_scaled(float weight, const float* from, int64_t p, float* to) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t c = 0; c < p; c += lanes) {
    const auto count = static_cast<size_t>(p - c);
    store_up_to(d, hn::MulAdd(hn::Set(d, weight), load_up_to(d, from + c, count), load_up_to(d, to + c, count)), to + c,
                count);
  }
}

// (2) and (3) over a range; `scores` is (heads rows, kRange).
void sum_range(const AttentionForward& args, const Range& range, float* scores, float* sums) {
  const AttentionSizes& sizes = args.sizes;
  const int64_t p = sizes.p, rows = args.seqs.length(range.s), before = sizes.before[static_cast<size_t>(range.s)];
  const auto keys = keys_of<float>(args.k, sizes, args.seqs, range.s, 0),
             values = keys_of<float>(args.v, sizes, args.seqs, range.s, 0);
  const auto q = head_of<float>(args.q, sizes, args.seqs, range.s, 0);
  const auto seen = [&](int64_t i) { return std::min(range.end, before + i + 1); };  // by row i
  for (int64_t j = range.begin; j < range.end; ++j)
    for (int64_t head = 0; head < sizes.heads; ++head)
      for (int64_t i = 0; i < rows; ++i)
        scores[(head * rows + i) * kRange + j - range.begin] =
            dot(q[i] + head * p, keys[j] + sizes.group_of(head) * p, p);
  for (int64_t head = 0; head < sizes.heads; ++head) {
    const auto slope = static_cast<float>(sizes.slopes[static_cast<size_t>(head)]);
    for (int64_t i = 0; i < rows; ++i) {
      float *row = scores + (head * rows + i) * kRange, *sum = sums + (head * rows + i) * (p + 2);
      std::fill_n(sum, p + 2, 0.0f);
      const int64_t last = seen(i) - range.begin - 1;
      if (last < 0) continue;
      bias_scores(row, last, static_cast<float>(sizes.scale), slope);
      sum[p] = largest_of(row, last);
      sum[p + 1] = exponentials(row, last, sum[p]);
      // bias_scores counts distances from the range's last key.
      sum[p] += slope * static_cast<float>(range.begin + last - before - i);
    }
  }
  for (int64_t j = range.begin; j < range.end; ++j)
    for (int64_t head = 0; head < sizes.heads; ++head)
      for (int64_t i = 0; i < rows; ++i)
        if (j < seen(i))
          add_scaled(scores[(head * rows + i) * kRange + j - range.begin], values[j] + sizes.group_of(head) * p, p,
                     sums + (head * rows + i) * (p + 2));
}

// The ranges of one sequence, side by side in `sums`, become its rows of out.
void join_ranges(const AttentionForward& args, int64_t s, int64_t ranges, const float* sums) {
  const int64_t p = args.sizes.p, rows = args.seqs.length(s), size = args.sizes.heads * rows * (p + 2);
  for (int64_t head = 0; head < args.sizes.heads; ++head) {
    const auto out = head_of<float>(args.out, args.sizes, args.seqs, s, head);
    for (int64_t i = 0; i < rows; ++i) {
      const float* const mine = sums + (head * rows + i) * (p + 2);
      const auto none = [&](int64_t r) { return mine[r * size + p + 1] == 0; };  // the row sees nothing of it
      float largest = mine[p], total = 0;
      for (int64_t r = 1; r < ranges; ++r)
        if (!none(r)) largest = std::max(largest, mine[r * size + p]);
      std::fill_n(out[i], p, 0.0f);
      for (int64_t r = 0; r < ranges; ++r) {
        if (none(r)) continue;
        const float share = std::exp(mine[r * size + p] - largest);
        total += share * mine[r * size + p + 1];
        add_scaled(share, mine + r * size, p, out[i]);
      }
      for (int64_t c = 0; c < p; ++c) out[i][c] /= total;
    }
  }
}

void attention_forward(const AttentionForward& args, Threads& threads) {
  const AttentionSizes& sizes = args.sizes;
  std::vector<Tile> tiles;
  std::vector<Range> ranges;
  int64_t all_sums = 0, most = 0;
  for (int64_t s = 0; s < args.seqs.count(); ++s) {
    const int64_t rows = args.seqs.length(s), keys = sizes.before[static_cast<size_t>(s)] + rows;
    if (rows > kFewRows) {
      for (int64_t head = 0; head < sizes.heads; ++head) add_tiles(sizes, args.seqs, s, head, tiles);
      continue;
    }
    for (int64_t begin = 0; begin < keys && rows > 0; begin += kRange) {
      ranges.push_back({s, begin, std::min(keys, begin + kRange), all_sums});
      all_sums += sizes.heads * rows * (sizes.p + 2);
      most = std::max(most, sizes.heads * rows * kRange);
    }
  }
  for (const Tile& tile : tiles) most = std::max(most, tile.rows * tile.keys);
  const Tensor scratch = Tensor::empty({threads.count(), most}, DType::f32),
               sums = Tensor::empty({all_sums}, DType::f32);
  const auto count = static_cast<int64_t>(tiles.size());
  threads.parallel(count + static_cast<int64_t>(ranges.size()), [&](int64_t task, int worker) {
    float* scores = scratch.data<float>() + worker * most;
    if (task < count) return forward_tile(args, tiles[static_cast<size_t>(task)], scores);
    const Range& range = ranges[static_cast<size_t>(task - count)];
    sum_range(args, range, scores, sums.data<float>() + range.sums);
  });
  for (size_t first = 0, end = 0; first < ranges.size(); first = end) {
    while (end < ranges.size() && ranges[end].s == ranges[first].s) ++end;
    join_ranges(args, ranges[first].s, static_cast<int64_t>(end - first), sums.data<float>() + ranges[first].sums);
  }
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
