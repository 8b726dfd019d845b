// One sequence that a model reads and writes. Its state lives in a slot of a StatePool, so many generators can share
// one pool, be forked by copying a slot, and be stopped and continued at any token.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/state.h"
#include "engine/sampler.h"
#include "models/model.h"

namespace ssm {

struct GenerateOptions {
  SamplerOptions sampler;
  uint64_t seed = 0;
  int64_t max_tokens = 256;
  std::optional<int64_t> end_of_text;  // writing ends after this id
  bool logprobs = false;
};

struct WrittenToken {
  int64_t id = 0;
  double logprob = 0;  // log_probability, if asked for
};

enum class Finish { length, end_of_text, stopped };

// A sequence at one moment: all that is needed to go on as if it had never stopped.
struct Snapshot {
  std::vector<std::byte> state;  // StatePool::save
  Tensor output;                 // (d): the model's output for the last token; absent before the first
  int64_t tokens = 0;            // read and written
  int64_t written = 0;           // the position of the next random number
  std::vector<int64_t> seen;     // distinct ids so far, ascending
};

class Generator {
 public:
  // Tokens given to the model at once when reading: large enough for matrix products to be efficient, small enough that
  // activations stay a few MB for any length of prompt.
  static constexpr int64_t kChunk = 512;

  // The slot is the caller's: zeroed (StatePool::acquire), and used by nobody else while this lives.
  Generator(const Model& model, Threads& threads, StatePool& pool, StatePool::Slot slot);

  void read(std::span<const int64_t> ids);
  // Writes until max_tokens, end_of_text, or on_token returns false (the token stays written). Throws Error before the
  // first token was read.
  Finish write(const GenerateOptions& options, const std::function<bool(const WrittenToken&)>& on_token);

  int64_t tokens() const { return tokens_; }
  Snapshot snapshot();
  void restore(const Snapshot& snapshot);  // of the same model

 private:
  void feed(std::span<const int64_t> ids);
  void feed_unread();
  std::vector<double> next_logits() const;  // (vocab_size): without padding rows, which are no tokens
  void mark_seen(int64_t id);

  const Model& model_;
  Ctx ctx_;
  StatePool& pool_;
  StatePool::Slot slot_;
  Tensor output_;                  // (1, d)
  std::optional<int64_t> unread_;  // the last written token, fed when more is asked for
  int64_t tokens_ = 0, written_ = 0;
  std::vector<bool> is_seen_;  // (vocab_size)
  std::vector<int64_t> seen_;  // the same as a list
};

}  // namespace ssm
