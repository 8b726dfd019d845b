#include "engine/generator.h"

namespace ssm {

Generator::Generator(const Model& model, Threads& threads, StatePool& pool, StatePool::Slot slot)
    : sequence_(model, pool, slot), batch_(model, threads, pool) {}

void Generator::feed(const std::function<bool()>& goes_on) {
  Sequence* const alone = &sequence_;
  batch_.feed(std::span(&alone, 1), goes_on);
}

void Generator::read(std::span<const int64_t> ids, const std::function<bool()>& goes_on) {
  sequence_.read(ids);
  feed(goes_on);
}

Finish Generator::write(const GenerateOptions& options, const OnToken& on_token) {
  Finish how = Finish::length;
  batch_.add(sequence_, options, on_token, [&](Finish finish) { how = finish; });
  while (batch_.step()) continue;
  return how;
}

Snapshot Generator::snapshot() {
  feed();
  return sequence_.snapshot();
}

void Generator::restore(const Snapshot& snapshot) { sequence_.restore(snapshot); }

void Generator::fork_from(Generator& other) {
  other.feed();
  sequence_.copy(other.sequence_);
}

}  // namespace ssm
