// The past of one sequence: a slot of a StatePool, the model's output for the last token it was fed, the ids that wait
// to be fed, and what the sampler needs to know of what came before. A Batch (batch.h) feeds it and lets it be written.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/state.h"
#include "engine/history.h"
#include "models/model.h"

namespace ssm {

// A sequence at one moment: all that is needed to go on as if it had never stopped.
struct Snapshot {
  std::vector<std::byte> state;  // StatePool::save
  Tensor output;                 // (d), on the host: the model's output for the last token; absent before the first
  int64_t tokens = 0;            // read and written
  int64_t written = 0;           // the position of the next random number
  std::vector<SeenId> seen;      // distinct ids so far
};

class Sequence {
 public:
  // Ids given to the model at once when reading: large enough for matrix products to be efficient, small enough that
  // activations stay a few MB (on a GPU a few hundred) for any length of prompt.
  static constexpr int64_t kPiece = 512, kGpuPiece = 16384;
  static int64_t piece(const Device& device) { return device.is_cuda() ? kGpuPiece : kPiece; }

  // The slot is the caller's: zeroed (StatePool::acquire), and used by nobody else while this lives.
  Sequence(const Model& model, StatePool& pool, StatePool::Slot slot);

  // Ids to be fed next. Throws Error when one is outside the vocabulary; nothing is taken then.
  void read(std::span<const int64_t> ids);
  // An id that the sampler chose.
  void write(int64_t id);

  // What one forward takes: up to piece() ids. A written id is always fed alone, so that a run that is cut anywhere
  // makes the same calls as one that is not, and gives the same bits.
  std::span<const int64_t> next_piece() const;
  int64_t unread() const { return static_cast<int64_t>(unread_.size() - fed_); }
  void fed(const Tensor& output);  // the next piece was; its last output (1, d)
  void keep_output();              // a copy of it, where it was a view of memory that others will write to

  const Tensor& output() const { return output_; }  // (1, d); absent before the first token
  StatePool::Slot slot() const { return slot_; }
  std::span<const SeenId> seen() const { return history_.seen(); }
  int64_t tokens() const { return tokens_; }
  int64_t written() const { return written_; }

  // These three need all ids to be fed.
  Snapshot snapshot() const;
  void restore(const Snapshot& snapshot);  // of the same model; drops what waits to be fed
  void copy(const Sequence& other);        // of the same pool; one copy of the state and no other

 private:
  StatePool& pool_;
  StatePool::Slot slot_;
  int64_t vocab_;
  Tensor output_;
  std::vector<int64_t> unread_;
  size_t fed_ = 0;            // of unread_
  bool first_alone_ = false;  // the first of unread_ was written
  int64_t tokens_ = 0, written_ = 0;
  History history_;
};

}  // namespace ssm
