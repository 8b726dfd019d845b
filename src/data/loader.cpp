// Which tokens a batch holds. How an epoch is laid out and shuffled is explained in data/README.md.
#include "data/loader.h"

#include <algorithm>

#include "core/error.h"
#include "core/rng.h"
#include "data/permutation.h"

namespace ssm {
namespace {

TokenBatch empty_batch(int64_t sequences, int64_t length) {
  const Shape shape{sequences * length};
  return {Tensor::empty(shape, DType::i64), Tensor::empty(shape, DType::i64), sequences, length};
}

std::span<int64_t> row(const Tensor& packed, int64_t sequence, int64_t length) {
  return packed.span<int64_t>().subspan(static_cast<size_t>(sequence * length), static_cast<size_t>(length));
}

void read_window(const Tokens& tokens, int64_t begin, int64_t sequence, const TokenBatch& batch) {
  tokens.read(begin, row(batch.inputs, sequence, batch.length));
  tokens.read(begin + 1, row(batch.targets, sequence, batch.length));
}

void check(const Tokens& tokens, const TokenRange& range, int64_t batch, int64_t length) {
  int64_t tokens_a_batch = 0;
  require(batch >= 1 && length >= 1 && !__builtin_mul_overflow(batch, length, &tokens_a_batch), "batches of ", batch,
          " sequences of ", length, " tokens: batch and length must be at least 1 and their product a 64-bit number");
  require(0 <= range.begin && range.begin <= range.end && range.end <= tokens.count(), tokens.origin(), ": tokens [",
          range.begin, ", ", range.end, ") asked for, it has ", tokens.count());
}

}  // namespace

Split split_tokens(int64_t count, double validation_fraction) {
  require(validation_fraction >= 0 && validation_fraction < 1, "a validation fraction of ", validation_fraction,
          "; expected at least 0 and less than 1");
  const auto held_back = static_cast<int64_t>(static_cast<double>(count) * validation_fraction);
  const int64_t border = count - std::min(held_back, count);
  return {{0, border}, {border, count}};
}

Loader::Loader(Tokens tokens, TokenRange range, const Options& options)
    : tokens_(std::move(tokens)), range_(range), options_(options) {
  const int64_t length = options.length;
  check(tokens_, range, options.batch, length);
  require(range.count() > length, tokens_.origin(), ": ", range.count(), " tokens found for training, at least ",
          length, " + 1 needed for one sequence; give more text or a smaller length");
  // As many windows as fit behind any offset in [0, length); data shorter than two windows gives one.
  windows_ = std::max<int64_t>(1, range.count() / length - 1);
}

int64_t Loader::window_begin(int64_t n) const {
  const int64_t epoch = n / windows_, length = options_.length;
  // Offsets [0, length) move every window to every place; data shorter than two windows has room for fewer.
  const int64_t free = std::min(length - 1, range_.count() - 1 - windows_ * length);
  const Rng offsets(options_.seed, "shuffle offset");
  const auto offset =
      static_cast<int64_t>(offsets.below(static_cast<uint64_t>(epoch), static_cast<uint64_t>(free + 1)));
  const Permutation order(windows_, Rng(options_.seed, text("shuffle epoch ", epoch)));
  return range_.begin + offset + order(n % windows_) * length;
}

TokenBatch Loader::batch(int64_t step) const {
  int64_t first = 0, last = 0;
  require(step >= 0 && !__builtin_mul_overflow(step, options_.batch, &first) &&
              !__builtin_add_overflow(first, options_.batch, &last),
          "step ", step, " with batches of ", options_.batch, " is outside the range of 64-bit window numbers");
  const TokenBatch result = empty_batch(options_.batch, options_.length);
  for (int64_t s = 0; s < options_.batch; ++s) read_window(tokens_, window_begin(first + s), s, result);
  return result;
}

SequentialWindows::SequentialWindows(Tokens tokens, TokenRange range, int64_t batch, int64_t length)
    : tokens_(std::move(tokens)), range_(range), batch_(batch), length_(length) {
  check(tokens_, range, batch, length);
  require(range.count() >= 2, tokens_.origin(), ": ", range.count(),
          " tokens found for evaluation, at least 2 needed; give more text or a larger validation fraction");
  windows_ = targets() / length;
  full_batches_ = windows_ / batch + (windows_ % batch > 0 ? 1 : 0);
  rest_ = targets() % length;
}

TokenBatch SequentialWindows::batch(int64_t step) const {
  require(step >= 0 && step < steps(), tokens_.origin(), ": batch ", step, " asked for, there are ", steps());
  if (step == full_batches_) {
    const TokenBatch result = empty_batch(1, rest_);
    read_window(tokens_, range_.begin + windows_ * length_, 0, result);
    return result;
  }
  const int64_t first = step * batch_;
  const TokenBatch result = empty_batch(std::min(batch_, windows_ - first), length_);
  for (int64_t s = 0; s < result.sequences; ++s) read_window(tokens_, range_.begin + (first + s) * length_, s, result);
  return result;
}

FixedBatches::FixedBatches(const Tensor& ids, int64_t vocab, std::string where) : ids_(ids), where_(std::move(where)) {
  require(ids.dtype() == DType::i64 && ids.rank() == 3 && ids.count() > 0 && ids.size(2) >= 2, where_, ": ",
          name_of(ids.dtype()), " ", ids.shape(), "; expected integers (steps, batch, length + 1), none of them 0");
  if (!ids_.contiguous()) ids_ = ids_.clone();
  const std::span<const int64_t> all = ids_.span<int64_t>();
  const auto bad = std::find_if(all.begin(), all.end(), [&](int64_t id) { return id < 0 || id >= vocab; });
  if (bad == all.end()) return;
  const int64_t at = bad - all.begin(), columns = ids.size(2), rows = ids.size(1);
  throw Error(where_, ": id ", *bad, " at (", at / columns / rows, ", ", at / columns % rows, ", ", at % columns,
              ") is outside the vocabulary of ", vocab);
}

TokenBatch FixedBatches::batch(int64_t step) const {
  require(step >= 0 && step < steps(), where_, ": batch ", step, " asked for, the file has ", steps(),
          "; ask for fewer steps or give more batches");
  const TokenBatch result = empty_batch(sequences(), length());
  const int64_t* from = ids_.data<int64_t>() + step * sequences() * (length() + 1);
  for (int64_t s = 0; s < sequences(); ++s, from += length() + 1) {
    std::copy_n(from, length(), row(result.inputs, s, length()).begin());
    std::copy_n(from + 1, length(), row(result.targets, s, length()).begin());
  }
  return result;
}

}  // namespace ssm
