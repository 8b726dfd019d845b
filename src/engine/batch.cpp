#include "engine/batch.h"

#include <algorithm>

#include "core/rng.h"
#include "core/sequences.h"

namespace ssm {
namespace {

// Sample 0 draws what a run without samples draws.
Rng stream_of(const GenerateOptions& options) {
  return Rng(options.seed, options.sample == 0 ? "sample" : "sample " + std::to_string(options.sample));
}

template <class Logit>
void choose_from(std::span<const Logit> logits, const GenerateOptions& options, const Sequence& sequence,
                 double uniform, Sampler& sampler, WrittenToken& token) {
  token.id = sampler.choose(logits, sequence.seen(), uniform);
  token.top.clear();
  if (!options.logprobs && options.top_logprobs == 0) return;
  const double sum = log_sum_exp(logits);
  const auto logprob = [&](int64_t id) { return static_cast<double>(logits[static_cast<size_t>(id)]) - sum; };
  token.logprob = logprob(token.id);
  for (const int64_t id : likeliest(logits, options.top_logprobs)) token.top.push_back({id, logprob(id)});
}

}  // namespace

struct Batch::Member {
  Sequence* sequence;
  GenerateOptions options;
  OnToken on_token;
  std::function<void(Finish)> on_finish;
  Sampler sampler;
  Rng rng;
  int64_t left;  // tokens to write
  WrittenToken token;
};

Batch::Batch(const Model& model, Threads& threads, StatePool& pool)
    : model_(model), ctx_{.device = model.options().device, .threads = &threads}, pool_(pool) {}
Batch::~Batch() = default;

int64_t Batch::size() const { return static_cast<int64_t>(members_.size()); }

// The next piece of each.
void Batch::forward(std::span<Sequence* const> sequences) {
  std::vector<int64_t> ids, lengths, slots;
  for (const Sequence* sequence : sequences) {
    const std::span<const int64_t> piece = sequence->next_piece();
    ids.insert(ids.end(), piece.begin(), piece.end());
    lengths.push_back(static_cast<int64_t>(piece.size()));
    slots.push_back(sequence->slot());
  }
  const Seqs seqs = Seqs::ragged(lengths, slots);
  const Var all = model_.lm().hidden(ctx_, Tensor::of(ids), seqs, pool_.state());  // (t, d)
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t end = seqs.offsets[s + 1];
    sequences[s]->fed(all.value.rows(end - 1, end).clone());
  }
}

// One forward: the next piece of the first, and those of others that fit beside it. A piece of few rows goes only with
// others to few rows in all, so that it meets the kernels it would meet alone.
void Batch::feed_prompts(std::span<Sequence* const> sequences) {
  const auto rows = [](const Sequence* sequence) { return static_cast<int64_t>(sequence->next_piece().size()); };
  const bool few = rows(sequences[0]) <= kFewRows;
  const int64_t most = few ? kFewRows : Sequence::kPiece;
  std::vector<Sequence*> packed;
  int64_t total = 0;
  for (Sequence* sequence : sequences) {
    if ((rows(sequence) <= kFewRows) != few || total + rows(sequence) > most) continue;
    packed.push_back(sequence);
    total += rows(sequence);
  }
  forward(packed);
}

void Batch::feed(std::span<Sequence* const> sequences, const std::function<bool()>& goes_on) {
  std::vector<Sequence*> behind(sequences.begin(), sequences.end());
  const auto is_done = [](const Sequence* sequence) { return sequence->unread() == 0; };
  for (std::erase_if(behind, is_done); !behind.empty(); std::erase_if(behind, is_done)) {
    if (goes_on && !goes_on()) return;
    feed_prompts(behind);
  }
}

void Batch::add(Sequence& sequence, const GenerateOptions& options, OnToken on_token,
                std::function<void(Finish)> on_finish) {
  require(sequence.output() || sequence.unread() > 0, "nothing was read, so there is nothing to continue");
  members_.push_back(std::unique_ptr<Member>(new Member{.sequence = &sequence,
                                                        .options = options,
                                                        .on_token = std::move(on_token),
                                                        .on_finish = std::move(on_finish),
                                                        .sampler = Sampler(options.sampler),
                                                        .rng = stream_of(options),
                                                        .left = options.max_tokens}));
}

Tensor Batch::logits(std::span<Sequence* const> sequences) const {
  const Tensor& first = sequences[0]->output();
  const auto count = static_cast<int64_t>(sequences.size());
  const Tensor outputs = Tensor::empty({count, first.size(1)}, first.dtype());  // (s, d)
  for (int64_t s = 0; s < count; ++s) outputs.rows(s, s + 1).copy_from(sequences[static_cast<size_t>(s)]->output());
  return model_.lm().logits(ctx_, Var{outputs, {}}).value;  // (s, padded vocab)
}

// Rows past the vocabulary pad the head and are no tokens.
void Batch::choose(Member& member, const Tensor& row) const {
  const auto vocab = static_cast<size_t>(model_.config().vocab_size);
  const double uniform = member.rng.uniform(static_cast<uint64_t>(member.sequence->written()));
  const auto from = [&](const auto* logits) {
    choose_from(std::span(logits, vocab), member.options, *member.sequence, uniform, member.sampler, member.token);
  };
  row.dtype() == DType::f64 ? from(row.data<double>()) : from(row.data<float>());
}

// on_finish may add another sequence: the member is gone by then.
void Batch::finish(Member* member, Finish how) {
  const auto on_finish = std::move(member->on_finish);
  std::erase_if(members_, [&](const auto& one) { return one.get() == member; });
  on_finish(how);
}

bool Batch::step() {
  // Whoever has more than its last token to read has a prompt before it. One piece a step: the others do not wait for
  // the whole of a long one.
  std::vector<Sequence*> prompts;
  for (const auto& member : members_)
    if (member->sequence->unread() > 1) prompts.push_back(member->sequence);
  if (!prompts.empty()) feed_prompts(prompts);

  std::vector<Member*> writing, done;
  std::vector<Sequence*> sequences, behind;
  for (const auto& member : members_) {
    if (member->sequence->unread() > 1) continue;
    if (member->left == 0) {
      done.push_back(member.get());
      continue;
    }
    writing.push_back(member.get());
    sequences.push_back(member->sequence);
    if (member->sequence->unread() == 1) behind.push_back(member->sequence);
  }
  for (Member* member : done) finish(member, Finish::length);
  if (!behind.empty()) forward(behind);
  if (!writing.empty()) {
    const Tensor rows = logits(sequences);
    ctx_.threads->parallel(static_cast<int64_t>(writing.size()),
                           [&](int64_t i, int) { choose(*writing[static_cast<size_t>(i)], rows.rows(i, i + 1)); });
  }
  for (Member* member : writing) {
    const int64_t id = member->token.id;
    member->sequence->write(id);
    --member->left;
    const bool more = member->on_token(member->token);
    const auto& ends = member->options.end_ids;
    const bool ended = std::find(ends.begin(), ends.end(), id) != ends.end();
    if (more && !ended && member->left > 0) continue;
    finish(member, ended ? Finish::end_of_text : more ? Finish::length : Finish::stopped);
  }
  return !members_.empty();
}

}  // namespace ssm
