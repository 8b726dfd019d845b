// One sequence that a model reads and writes: a batch of one. Its state lives in a slot of a StatePool, so many
// generators can share one pool, be forked by copying a slot, and be stopped and continued at any token.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/batch.h"

namespace ssm {

class Generator {
 public:
  // The slot is the caller's: zeroed (StatePool::acquire), and used by nobody else while this lives.
  Generator(const Model& model, Threads& threads, StatePool& pool, StatePool::Slot slot);

  // goes_on is asked between forwards; false ends the reading early (the ids that were not fed are still to come).
  void read(std::span<const int64_t> ids, const std::function<bool()>& goes_on = nullptr);
  // Writes until max_tokens, an end id, or on_token returns false (the token stays written). Throws Error before the
  // first token was read.
  Finish write(const GenerateOptions& options, const OnToken& on_token);

  // Of the next token (vocab_size): without padding rows, which are no tokens. Throws Error before the first was read.
  std::vector<float> next_logits();

  int64_t tokens() const { return sequence_.tokens(); }
  int64_t unread() const { return sequence_.unread(); }
  Snapshot snapshot();
  void restore(const Snapshot& snapshot);  // of the same model
  void fork_from(Generator& other);        // of the same pool and model: goes on from where the other is

 private:
  void feed(const std::function<bool()>& goes_on = nullptr);

  Sequence sequence_;
  Batch batch_;
  int64_t vocab_;
};

}  // namespace ssm
