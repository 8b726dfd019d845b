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
  // On a GPU a product's bits depend on its number of rows anyway.
  const bool gpu = ctx_.device.is_cuda();
  const auto is_few = [&](const Sequence* sequence) { return !gpu && rows(sequence) <= kFewRows; };
  const bool few = is_few(sequences[0]);
  const int64_t most = few ? kFewRows : Sequence::piece(ctx_.device);
  std::vector<Sequence*> packed;
  int64_t total = 0;
  for (Sequence* sequence : sequences) {
    if (is_few(sequence) != few || (total > 0 && total + rows(sequence) > most)) continue;
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
  const Tensor outputs = Tensor::empty({count, first.size(1)}, first.dtype(), ctx_.device);  // (s, d)
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
  if (decoder_) member->sequence->keep_output();
  std::replace(queued_.begin(), queued_.end(), member, static_cast<Member*>(nullptr));
  std::erase_if(members_, [&](const auto& one) { return one.get() == member; });
  on_finish(how);
}

// The token that was chosen: told, and the end if it is one.
void Batch::accept(Member* member) {
  const int64_t id = member->token.id;
  --member->left;
  const bool more = member->on_token(member->token);
  const auto& ends = member->options.end_ids;
  const bool ended = std::find(ends.begin(), ends.end(), id) != ends.end();
  if (more && !ended && member->left > 0) return;
  finish(member, ended ? Finish::end_of_text : more ? Finish::length : Finish::stopped);
}

bool Batch::step() {
  // Whoever has more than its last token to read has a prompt before it. One piece a step: the others do not wait for
  // the whole of a long one.
  std::vector<Sequence*> prompts;
  for (const auto& member : members_)
    if (member->sequence->unread() > 1) prompts.push_back(member->sequence);
  if (!prompts.empty()) feed_prompts(prompts);

  std::vector<Member*> writing, done;
  for (const auto& member : members_) {
    if (member->sequence->unread() > 1) continue;
    (member->left == 0 ? done : writing).push_back(member.get());
  }
  for (Member* member : done) finish(member, Finish::length);
  if (writing.empty()) return !members_.empty();
  const bool gpu =
      kHasCuda && ctx_.device.is_cuda() && std::all_of(writing.begin(), writing.end(), [](const Member* member) {
        return GraphDecoder::chooses(member->options.sampler) && !member->options.logprobs &&
               member->options.top_logprobs == 0;
      });
  bool queued = false;  // what is queued on the GPU is taken from there, whoever came meanwhile
  if constexpr (kHasCuda) queued = decoder_ && decoder_->queued() > 0;
  gpu || queued ? write_on_gpu(writing) : write_on_host(writing);
  return !members_.empty();
}

void Batch::write_on_host(std::span<Member* const> writing) {
  std::vector<Sequence*> sequences, behind;
  for (const Member* member : writing) {
    sequences.push_back(member->sequence);
    if (member->sequence->unread() == 1) behind.push_back(member->sequence);
  }
  if (!behind.empty()) forward(behind);
  const Tensor rows = logits(sequences).on(Device::cpu());
  ctx_.threads->parallel(static_cast<int64_t>(writing.size()),
                         [&](int64_t i, int) { choose(*writing[static_cast<size_t>(i)], rows.rows(i, i + 1)); });
  for (Member* member : writing) {
    member->sequence->write(member->token.id);
    accept(member);
  }
}

// Queues the step after those that are queued, for the same rows.
void Batch::queue_next() {
  if constexpr (kHasCuda) {
    std::vector<double> uniforms;
    for (const Member* member : queued_) {
      const int64_t position = member->sequence->written() + decoder_->queued();
      uniforms.push_back(member->rng.uniform(static_cast<uint64_t>(position)));
    }
    decoder_->step(uniforms);
  }
}

// The host is one step behind: while it looks at a token, the GPU is at the next one already. A sequence that turns out
// to have ended has then read its last token too, which does no harm: it would be the next thing to read.
void Batch::write_on_gpu(std::span<Member* const> writing) {
  if constexpr (kHasCuda) {
    if (!decoder_) decoder_ = std::make_shared<GraphDecoder>(model_, *ctx_.threads, pool_);
    if (decoder_->queued() == 0) {
      std::vector<Sequence*> sequences, behind;
      std::vector<GraphDecoder::Row> rows;
      std::vector<double> uniforms;
      queued_.assign(writing.begin(), writing.end());
      for (const Member* member : queued_) {
        sequences.push_back(member->sequence);
        if (member->sequence->unread() == 1) behind.push_back(member->sequence);
        rows.push_back({member->sequence->slot(), member->options.sampler});
        uniforms.push_back(member->rng.uniform(static_cast<uint64_t>(member->sequence->written())));
      }
      if (!behind.empty()) forward(behind);
      decoder_->start(rows);
      const Tensor& first = sequences[0]->output();
      const Tensor outputs =
          Tensor::empty({static_cast<int64_t>(rows.size()), first.size(1)}, first.dtype(), ctx_.device);
      for (size_t i = 0; i < sequences.size(); ++i) {
        const auto row = static_cast<int64_t>(i);
        outputs.rows(row, row + 1).copy_from(sequences[i]->output());
      }
      decoder_->choose(outputs, uniforms);
    }
    // Ahead only while it is sure that all go on, and nobody waits to join.
    const bool same = std::equal(queued_.begin(), queued_.end(), writing.begin(), writing.end());
    const bool ahead =
        same && std::all_of(queued_.begin(), queued_.end(), [](const Member* member) { return member->left > 1; });
    if (ahead && decoder_->queued() == 1) queue_next();

    const std::vector<int64_t> ids = decoder_->take();
    const std::vector<Member*> members = queued_;
    const bool read_on = decoder_->queued() > 0;  // a step is queued that feeds these tokens
    for (size_t i = 0; i < members.size(); ++i) {
      Member* const member = members[i];
      if (!member || queued_[i] != member) continue;  // ended, here or in a callback
      member->token = {.id = ids[i], .logprob = 0, .top = {}};
      member->sequence->write(ids[i]);
      if (read_on) member->sequence->fed(decoder_->output(static_cast<int64_t>(i)));
      accept(member);
    }
    // Whoever is left reads its token with the others when they are queued anew.
    if (decoder_->queued() == 0) queued_.clear();
  }
}

}  // namespace ssm
