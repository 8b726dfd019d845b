// Writing on a GPU: one step takes the last token of each sequence of a batch through the model, multiplies the head
// and chooses the next tokens, all on the GPU, recorded once as a graph for each size of batch and replayed. The host
// only looks at the tokens, one step behind, so that the GPU never waits for it.
//
// A state that grows with the tokens (attention's) is moved when it is full and read to another length at every step:
// then steps are queued as they are, for the rows there are, and nothing is recorded.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/state.h"
#include "engine/sampler.h"
#include "models/model.h"

namespace ssm {

class GraphDecoder {
 public:
  GraphDecoder(const Model& model, Threads& threads, StatePool& pool);
  ~GraphDecoder();

  // Whether these are chosen on the GPU: a temperature, top-k and top-p; the rest needs what only the host knows.
  static bool chooses(const SamplerOptions& options) {
    return options.min_p == 0 && options.repetition_penalty == 1 && options.frequency_penalty == 0 &&
           options.presence_penalty == 0;
  }

  struct Row {
    StatePool::Slot slot;
    SamplerOptions sampler;
  };
  // Who writes from the next step on; drops what is queued, so all results must have been taken.
  void start(std::span<const Row> rows);
  // Queues the choice of a token for each row: from its last output, (rows, d), ...
  void choose(const Tensor& outputs, std::span<const double> uniforms);
  // ... or from the token that the step before this one chose. A uniform number in [0, 1) a row.
  void step(std::span<const double> uniforms);
  int64_t queued() const;  // steps whose tokens were not taken yet; at most 2

  // The tokens of the oldest step that was queued; waits for it. Throws Error when a row's logits were not finite.
  std::vector<int64_t> take();
  // The model's output for the token that the newest step gave row i, (1, d): a view, good until the next step.
  Tensor output(int64_t row) const;

 private:
  struct Bucket;
  struct Result;
  Bucket& bucket(int64_t rows);
  void forward(Bucket& bucket) const;
  void sample(Bucket& bucket, const Tensor& logits) const;
  void queue_result();

  const Model& model_;
  Ctx ctx_;
  StatePool& pool_;
  const bool grows_;  // the state, with the tokens
  std::map<int64_t, std::unique_ptr<Bucket>> buckets_;
  Bucket* active_ = nullptr;
  int64_t rows_ = 0;
  bool random_ = false;  // a row draws: its uniform numbers are needed
  std::vector<std::unique_ptr<Result>> results_;
  size_t first_ = 0, queued_ = 0;  // of results_, a ring
};

}  // namespace ssm
