#include "engine/generator.h"

#include "core/error.h"

namespace ssm {

Generator::Generator(const Model& model, Threads& threads, StatePool& pool, StatePool::Slot slot)
    : sequence_(model, pool, slot), batch_(model, threads, pool), vocab_(model.config().vocab_size) {}

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

std::vector<float> Generator::next_logits() {
  feed();
  require(static_cast<bool>(sequence_.output()), "nothing was read, so there is nothing to continue");
  Sequence* const alone = &sequence_;
  const Tensor row = batch_.logits(std::span(&alone, 1)).to(DType::f32);
  return {row.data<float>(), row.data<float>() + vocab_};
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
