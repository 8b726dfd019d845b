#include "engine/generator.h"

#include <algorithm>

#include "core/rng.h"
#include "core/sequences.h"

namespace ssm {

Generator::Generator(const Model& model, Threads& threads, StatePool& pool, StatePool::Slot slot)
    : model_(model),
      ctx_{.device = model.options().device, .threads = &threads},
      pool_(pool),
      slot_(slot),
      is_seen_(static_cast<size_t>(model.config().vocab_size)) {}

void Generator::mark_seen(int64_t id) {
  const auto at = static_cast<size_t>(id);
  if (is_seen_[at]) return;
  is_seen_[at] = true;
  seen_.push_back(id);
}

void Generator::feed(std::span<const int64_t> ids) {
  for (size_t begin = 0; begin < ids.size(); begin += kChunk) {
    const auto piece = ids.subspan(begin, std::min<size_t>(kChunk, ids.size() - begin));
    const auto count = static_cast<int64_t>(piece.size());
    const Seqs seqs = Seqs::ragged(std::span(&count, 1), std::span(&slot_, 1));
    const Var all = model_.lm().hidden(ctx_, Tensor::of(piece, {count}), seqs, pool_.state());  // (count, d)
    output_ = all.value.rows(count - 1, count).clone();
  }
}

void Generator::feed_unread() {
  if (!unread_) return;
  const int64_t id = *unread_;
  feed(std::span(&id, 1));
  unread_.reset();
}

void Generator::read(std::span<const int64_t> ids) {
  const int64_t vocab = model_.config().vocab_size;
  for (const int64_t id : ids)
    require(0 <= id && id < vocab, "token id ", id, " is outside the vocabulary, expected 0 to ", vocab - 1);
  feed_unread();
  feed(ids);
  for (const int64_t id : ids) mark_seen(id);
  tokens_ += static_cast<int64_t>(ids.size());
}

std::vector<double> Generator::next_logits() const {
  const Tensor logits = model_.lm().logits(ctx_, Var{output_, {}}).value;  // (1, padded vocab)
  std::vector<double> result(static_cast<size_t>(model_.config().vocab_size));
  if (logits.dtype() == DType::f64)
    std::copy_n(logits.data<double>(), result.size(), result.begin());
  else
    std::copy_n(logits.data<float>(), result.size(), result.begin());
  return result;
}

Finish Generator::write(const GenerateOptions& options, const std::function<bool(const WrittenToken&)>& on_token) {
  require(static_cast<bool>(output_), "nothing was read, so there is nothing to continue");
  const Rng rng(options.seed, "sample");
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    feed_unread();
    const std::vector<double> logits = next_logits();
    WrittenToken token;
    token.id = sample(logits, options.sampler, seen_, rng.uniform(static_cast<uint64_t>(written_)));
    if (options.logprobs) token.logprob = log_probability(logits, token.id);
    unread_ = token.id;
    mark_seen(token.id);
    ++written_;
    ++tokens_;
    const bool more = on_token(token);
    if (options.end_of_text == token.id) return Finish::end_of_text;
    if (!more) return Finish::stopped;
  }
  return Finish::length;
}

Snapshot Generator::snapshot() {
  feed_unread();
  Snapshot result{.state = pool_.save(slot_), .tokens = tokens_, .written = written_, .seen = seen_};
  if (output_) result.output = output_.reshape({output_.size(1)});
  std::sort(result.seen.begin(), result.seen.end());
  return result;
}

void Generator::restore(const Snapshot& snapshot) {
  pool_.restore(slot_, snapshot.state);
  output_ = snapshot.output ? snapshot.output.reshape({1, snapshot.output.size(0)}) : Tensor();
  unread_.reset();
  tokens_ = snapshot.tokens;
  written_ = snapshot.written;
  is_seen_.assign(is_seen_.size(), false);
  seen_.clear();
  for (const int64_t id : snapshot.seen) mark_seen(id);
}

}  // namespace ssm
