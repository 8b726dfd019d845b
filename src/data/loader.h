// Batches of tokens for training and evaluation. A batch is a pure function of the data, the seed and the step:
// a loader has no position to save, so a resumed run sees exactly what the unbroken one would have seen.
#pragma once

#include <cstdint>
#include <string>

#include "core/tensor.h"
#include "data/token_file.h"

namespace ssm {

// Rows of all sequences one after the other; targets are the inputs shifted by one.
struct TokenBatch {
  Tensor inputs;   // (sequences * length) i64
  Tensor targets;  // (sequences * length) i64
  int64_t sequences = 0, length = 0;
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual TokenBatch batch(int64_t step) const = 0;  // step from 0; safe to call from many threads
  virtual int64_t steps() const = 0;            // how many batches there are; -1: endless
};

struct TokenRange {
  int64_t begin = 0, end = 0;  // [begin, end)
  int64_t count() const { return end - begin; }
};

struct Split {
  TokenRange train, validation;
};
// The last `validation_fraction` of the tokens is held back, the first part is for training. 0 <= fraction < 1.
Split split_tokens(int64_t count, double validation_fraction);

// Endless shuffled windows of `length` inputs. An epoch shows each of windows() windows once, in an order and at an
// offset of its own; a batch may begin in one epoch and end in the next.
class Loader : public Dataset {
 public:
  struct Options {
    int64_t batch = 1, length = 1;
    uint64_t seed = 0;
  };
  // Throws Error if the range has fewer than length + 1 tokens.
  Loader(Tokens tokens, TokenRange range, const Options& options);
  TokenBatch batch(int64_t step) const override;
  int64_t steps() const override { return -1; }
  int64_t windows() const { return windows_; }  // in an epoch
  // Where the n-th window since the start begins: its inputs are tokens [begin, begin + length).
  int64_t window_begin(int64_t n) const;

 private:
  Tokens tokens_;
  TokenRange range_;
  Options options_;
  int64_t windows_;
};

// A range read once from its beginning to its end, for evaluation: each of its tokens but the first, which has
// nothing before it, is a target exactly once. Batches have `batch` sequences of `length`; the last ones may have
// fewer, and what remains in the end is one shorter sequence.
class SequentialWindows : public Dataset {
 public:
  // Throws Error if the range has fewer than 2 tokens.
  SequentialWindows(Tokens tokens, TokenRange range, int64_t batch, int64_t length);
  TokenBatch batch(int64_t step) const override;
  int64_t steps() const override { return full_batches_ + (rest_ > 0 ? 1 : 0); }
  int64_t targets() const { return range_.count() - 1; }

 private:
  Tokens tokens_;
  TokenRange range_;
  int64_t batch_, length_;
  int64_t windows_;       // whole ones
  int64_t full_batches_;  // batches made of whole windows
  int64_t rest_;          // targets after the last whole window
};

// Batches prescribed by the user, in order, to repeat another program's run.
class FixedBatches : public Dataset {
 public:
  // ids (steps, batch, length + 1), i64, each in [0, vocab); `where` opens error messages (the file's name).
  FixedBatches(const Tensor& ids, int64_t vocab, std::string where);
  TokenBatch batch(int64_t step) const override;  // throws Error for a step that is not there
  int64_t steps() const override { return ids_.size(0); }
  int64_t sequences() const { return ids_.size(1); }
  int64_t length() const { return ids_.size(2) - 1; }

 private:
  Tensor ids_;  // (steps, batch, length + 1)
  std::string where_;
};

}  // namespace ssm
