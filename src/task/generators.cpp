// One function a task; what they draw comes from a counter of their own.
#include "task/generators.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace ssm {
namespace {

constexpr int64_t kNoise = 0;

// Numbers one after the other from a stream of the generator.
class Draws {
 public:
  Draws(uint64_t seed, const std::string& stream) : rng_(seed, stream) {}
  int64_t below(int64_t limit) { return static_cast<int64_t>(rng_.below(position_++, static_cast<uint64_t>(limit))); }
  double uniform() { return rng_.uniform(position_++); }
  // `count` different numbers below `limit`, in any order (Floyd's algorithm).
  std::vector<int64_t> different(int64_t count, int64_t limit) {
    std::vector<int64_t> taken;
    for (int64_t top = limit - count; top < limit; ++top) {
      const int64_t drawn = below(top + 1);
      const auto at = std::lower_bound(taken.begin(), taken.end(), drawn);
      if (at == taken.end() || *at != drawn)
        taken.insert(at, drawn);
      else
        taken.push_back(top);  // larger than all before it
    }
    return taken;
  }
  void shuffle(std::vector<int64_t>& values) {
    for (auto i = static_cast<int64_t>(values.size()) - 1; i > 0; --i)
      std::swap(values[static_cast<size_t>(i)], values[static_cast<size_t>(below(i + 1))]);
  }

 private:
  Rng rng_;
  uint64_t position_ = 0;
};

using Ids = std::span<int64_t>;

// Noise 0, symbols 1 .. vocab - 2, marker vocab - 1.
void copying(const TaskShape& shape, Draws& draws, Ids ids, Ids targets) {
  const int64_t body = shape.length + shape.memory;
  std::fill(ids.begin(), ids.begin() + body, kNoise);
  std::fill(ids.begin() + body, ids.end(), shape.vocab - 1);
  std::vector<int64_t> places;
  if (shape.kind == TaskKind::selective_copying) {
    places = draws.different(shape.memory, body);
  } else {
    places.resize(static_cast<size_t>(shape.memory));
    std::iota(places.begin(), places.end(), 0);
  }
  for (int64_t i = 0; i < shape.memory; ++i) {
    const int64_t symbol = 1 + draws.below(shape.vocab - 2);
    ids[static_cast<size_t>(places[static_cast<size_t>(i)])] = symbol;
    targets[static_cast<size_t>(body + i)] = symbol;
  }
}

// Symbols 0 .. vocab - 3, a no-op vocab - 2 that is never drawn, trigger vocab - 1. The sequence has one token more
// than there are inputs: the answer to the trigger at the end.
void induction_heads(const TaskShape& shape, Draws& draws, Ids ids, Ids targets) {
  const int64_t symbols = shape.vocab - 2, trigger = shape.vocab - 1, n = shape.length - 1;
  for (int64_t i = 0; i < n; ++i) ids[static_cast<size_t>(i)] = draws.below(symbols);
  ids[static_cast<size_t>(n)] = trigger;
  const int64_t wanted = draws.below(2) == 0 ? 1 : shape.triggers;
  int64_t answer = -1, last = -2;
  for (const int64_t place : draws.different(wanted, n - 1)) {
    if (place - last < 2) continue;  // its trigger would take the answer's place
    last = place;
    if (answer < 0) answer = ids[static_cast<size_t>(place + 1)];
    ids[static_cast<size_t>(place)] = trigger;
    ids[static_cast<size_t>(place + 1)] = answer;
  }
  if (shape.every_token) std::copy(ids.begin() + 1, ids.end(), targets.begin());
  targets[static_cast<size_t>(n)] = answer;
}

// Keys 1 .. vocab / 2 - 1, values vocab / 2 .. vocab - 1, each at most once a sequence. The key asks again after a gap
// of g pairs of tokens, where P(g) goes as (g + 1)^(a - 1), a = 0.01: mostly soon. Elsewhere 0.
void mqar(const TaskShape& shape, Draws& draws, Ids ids, Ids targets) {
  constexpr double kPower = 0.01;
  const int64_t pairs = shape.memory, begin = 2 * pairs, half = shape.vocab / 2;
  std::vector<int64_t> keys = draws.different(pairs, half - 1), values = draws.different(pairs, shape.vocab - half);
  draws.shuffle(keys);
  draws.shuffle(values);
  std::fill(ids.begin(), ids.end(), kNoise);
  const int64_t places = (shape.length - begin) / 2;
  // Drawn one after the other without replacement with weights w_g: the largest log(u) / w_g (Efraimidis & Spirakis).
  std::vector<std::pair<double, int64_t>> order(static_cast<size_t>(places));
  for (int64_t g = 0; g < places; ++g) {
    const double weight = std::pow(static_cast<double>(g + 1), kPower - 1);
    order[static_cast<size_t>(g)] = {std::log1p(-draws.uniform()) / weight, g};
  }
  std::partial_sort(order.begin(), order.begin() + pairs, order.end(), std::greater<>());
  for (int64_t i = 0; i < pairs; ++i) {
    const auto at = static_cast<size_t>(i);
    ids[2 * at] = 1 + keys[at];
    ids[2 * at + 1] = half + values[at];
    const auto asked = static_cast<size_t>(begin + 2 * order[at].second);
    ids[asked] = 1 + keys[at];
    targets[asked] = half + values[at];
  }
}

}  // namespace

int64_t TaskShape::inputs() const {
  const bool copies = kind == TaskKind::selective_copying || kind == TaskKind::copying;
  return copies ? length + 2 * memory : length;
}

void TaskShape::check() const {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, name, " is ", value, ", expected ", low, " to ", high);
  };
  constexpr int64_t kLongest = int64_t{1} << 28;
  within("vocab", vocab, 4, 1 << 24);
  within("memory", memory, 1, 1 << 20);
  switch (kind) {
    case TaskKind::selective_copying:
    case TaskKind::copying: within("length", length, 1, kLongest); return;
    case TaskKind::induction_heads:
      within("length", length, 4, kLongest);
      within("triggers", triggers, 1, length - 2);
      return;
    case TaskKind::mqar:
      require(memory < vocab / 2, "memory is ", memory, ", expected less than half the vocabulary of ", vocab,
              ": each pair has a key of its own");
      within("length", length, 4 * memory, kLongest);
      return;
  }
}

void make_sequence(const TaskShape& shape, uint64_t seed, const std::string& stream, int64_t index, Ids ids,
                   Ids targets) {
  Draws draws(seed, text(stream, " ", index));
  std::fill(targets.begin(), targets.end(), kIgnoredTarget);
  switch (shape.kind) {
    case TaskKind::selective_copying:
    case TaskKind::copying: return copying(shape, draws, ids, targets);
    case TaskKind::induction_heads: return induction_heads(shape, draws, ids, targets);
    case TaskKind::mqar: return mqar(shape, draws, ids, targets);
  }
}

TokenBatch make_batch(const TaskShape& shape, uint64_t seed, const std::string& stream, int64_t first, int64_t count) {
  const int64_t inputs = shape.inputs();
  TokenBatch batch{Tensor::empty({count * inputs}, DType::i64), Tensor::empty({count * inputs}, DType::i64), count,
                   inputs};
  const auto row = [&](const Tensor& packed, int64_t s) {
    return packed.span<int64_t>().subspan(static_cast<size_t>(s * inputs), static_cast<size_t>(inputs));
  };
  for (int64_t s = 0; s < count; ++s)
    make_sequence(shape, seed, stream, first + s, row(batch.inputs, s), row(batch.targets, s));
  return batch;
}

int64_t TaskStream::length(int64_t step) const {
  if (step >= curriculum_ || shortest_ >= shape_.length) return shape_.length;
  int64_t stages = 0;  // before the full length
  for (int64_t length = shortest_; length < shape_.length; length *= 2) ++stages;
  return shortest_ << (step * stages / curriculum_);
}

TokenBatch TaskStream::batch(int64_t step) const {
  TaskShape shape = shape_;
  shape.length = length(step);
  if (shape.kind == TaskKind::mqar) shape.memory = std::max<int64_t>(1, shape_.memory * shape.length / shape_.length);
  return make_batch(shape, seed_, "train", step * batch_, batch_);
}

}  // namespace ssm
