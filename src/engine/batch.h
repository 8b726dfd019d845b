// Sequences that a model reads and writes together: one step feeds the last token of each in one packed forward and
// multiplies the head once, so that the weights are read once for all of them. Sequences come and go between steps.
// This is the one place that feeds tokens and samples; a Generator is a batch of one.
//
// A sequence's tokens do not depend on its neighbours: prompts are cut by their own length and packed only with pieces
// that meet the same kernels, and each draws random numbers of its own. README.md says when the bits are the same too.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "core/context.h"
#include "engine/graph_decoder.h"
#include "engine/sampler.h"
#include "engine/sequence.h"

namespace ssm {

struct GenerateOptions {
  SamplerOptions sampler;
  uint64_t seed = 0;
  int64_t sample = 0;  // samples of one seed draw from streams of their own
  int64_t max_tokens = 256;
  std::vector<int64_t> end_ids;  // writing ends after any of these
  bool logprobs = false;
  int64_t top_logprobs = 0;  // with so many of the likeliest alternatives
};

struct TokenLogprob {
  int64_t id = 0;
  double logprob = 0;  // the model's own: before penalties, temperature and cuts
};

struct WrittenToken {
  int64_t id = 0;
  double logprob = 0;             // if asked for
  std::vector<TokenLogprob> top;  // if asked for, likeliest first
};

enum class Finish { length, end_of_text, stopped };

// Called with each token; false ends the writing (the token stays written).
using OnToken = std::function<bool(const WrittenToken&)>;

class Batch {
 public:
  // Rows that ops/linear multiplies weight by weight, each row as if it were alone; more go through GEMM.
  static constexpr int64_t kFewRows = 16;

  Batch(const Model& model, Threads& threads, StatePool& pool);
  ~Batch();

  // Feeds all that is unread. `goes_on` is asked between forwards; false leaves the rest unread.
  void feed(std::span<Sequence* const> sequences, const std::function<bool()>& goes_on = nullptr);

  // Writes this sequence with the others from the next step on, after what it has unread. It must outlive its writing;
  // on_finish is called once, at the end of a step. Throws Error when it has read nothing.
  void add(Sequence& sequence, const GenerateOptions& options, OnToken on_token, std::function<void(Finish)> on_finish);

  // One forward of unread prompts, if there are any, and a token for every sequence that has no more to read. False:
  // no sequence is left.
  bool step();
  int64_t size() const;
  // Of what each has been fed: (sequences, padded vocab).
  Tensor logits(std::span<Sequence* const> sequences) const;

 private:
  struct Member;
  void forward(std::span<Sequence* const> sequences);
  void feed_prompts(std::span<Sequence* const> sequences);
  void choose(Member& member, const Tensor& row) const;
  void accept(Member* member);
  void finish(Member* member, Finish how);
  void write_on_host(std::span<Member* const> writing);
  void write_on_gpu(std::span<Member* const> writing);
  void queue_next();

  const Model& model_;
  Ctx ctx_;
  StatePool& pool_;
  std::vector<std::unique_ptr<Member>> members_;

  // Writing on a GPU: who is in the steps that are queued there (null: has ended since), in the order of the rows.
  std::shared_ptr<GraphDecoder> decoder_;  // none before it is needed
  std::vector<Member*> queued_;
};

}  // namespace ssm
