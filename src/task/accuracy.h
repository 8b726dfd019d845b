// Exact accuracy on held-back sequences: an answer is right when it is the largest logit. Long sequences are read in
// chunks with a carried state, so that memory does not grow with their length (a state that grows with it excepted).
#pragma once

#include <functional>

#include "models/model.h"
#include "task/generators.h"

namespace ssm {

struct Accuracy {
  int64_t answers = 0, right = 0;    // positions that have one
  int64_t sequences = 0, whole = 0;  // those all of whose answers are right
  double token() const { return answers > 0 ? static_cast<double>(right) / static_cast<double>(answers) : 0; }
  double sequence() const { return sequences > 0 ? static_cast<double>(whole) / static_cast<double>(sequences) : 0; }
};

struct AccuracyOptions {
  int64_t sequences = 256;
  int64_t tokens_at_once = 1 << 18;    // in one call of the model
  int64_t tokens_in_memory = 1 << 24;  // of all sequences that are read side by side
  std::function<bool()> go_on;         // asked between calls; false ends the evaluation, whose result is then partial
};

// On the first sequences of the stream "test" of `seed`. Of induction-heads the last answer alone counts.
Accuracy accuracy(const Model& model, Threads& threads, TaskShape shape, uint64_t seed, const AccuracyOptions& options);

}  // namespace ssm
