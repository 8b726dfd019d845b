#include "engine/sequence.h"

#include <algorithm>

namespace ssm {

Sequence::Sequence(const Model& model, StatePool& pool, StatePool::Slot slot)
    : pool_(pool), slot_(slot), vocab_(model.config().vocab_size), history_(vocab_) {}

void Sequence::read(std::span<const int64_t> ids) {
  for (const int64_t id : ids)
    require(0 <= id && id < vocab_, "token id ", id, " is outside the vocabulary, expected 0 to ", vocab_ - 1);
  unread_.insert(unread_.end(), ids.begin(), ids.end());
  for (const int64_t id : ids) history_.read(id);
  tokens_ += static_cast<int64_t>(ids.size());
}

void Sequence::write(int64_t id) {
  DCHECK(unread() == 0);
  unread_.push_back(id);
  first_alone_ = true;
  history_.write(id);
  ++written_;
  ++tokens_;
}

std::span<const int64_t> Sequence::next_piece() const {
  const size_t most = first_alone_ ? 1 : static_cast<size_t>(piece(pool_.device()));
  return std::span(unread_).subspan(fed_, std::min(most, unread_.size() - fed_));
}

void Sequence::fed(const Tensor& output) {
  fed_ += next_piece().size();
  first_alone_ = false;
  output_ = output;
  if (fed_ < unread_.size()) return;
  unread_.clear();
  fed_ = 0;
}

void Sequence::keep_output() { output_ = output_.clone(); }

Snapshot Sequence::snapshot() const {
  DCHECK(unread() == 0);
  Snapshot result{.state = pool_.save(slot_), .tokens = tokens_, .written = written_};
  if (output_) result.output = output_.reshape({output_.size(1)}).on(Device::cpu());
  result.seen.assign(seen().begin(), seen().end());
  return result;
}

void Sequence::restore(const Snapshot& snapshot) {
  pool_.restore(slot_, snapshot.state);
  output_ = snapshot.output ? snapshot.output.reshape({1, snapshot.output.size(0)}).on(pool_.device()) : Tensor();
  unread_.clear();
  fed_ = 0;
  first_alone_ = false;
  tokens_ = snapshot.tokens;
  written_ = snapshot.written;
  history_.assign(snapshot.seen);
}

void Sequence::copy(const Sequence& other) {
  DCHECK(&pool_ == &other.pool_ && other.unread() == 0);
  pool_.copy(other.slot_, slot_);
  output_ = other.output_;  // shared: outputs are replaced, never written
  unread_.clear();
  fed_ = 0;
  first_alone_ = false;
  tokens_ = other.tokens_;
  written_ = other.written_;
  history_ = other.history_;
}

}  // namespace ssm
