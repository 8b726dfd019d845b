// From the logits of one position to the next token. Pure: the token is a function of the arguments, so a run is
// reproduced by reproducing `uniform` (core/rng.h, stream "sample", position = tokens written so far).
//
// The steps, in this order: repetition penalty, temperature, top-k, top-p, min-p; each works on what the step before
// left. README.md says what other programs do differently.
#pragma once

#include <cstdint>
#include <span>

#include "core/config.h"

namespace ssm {

struct SamplerOptions {
  double temperature = 1.0;         // logits are divided by it; 0: greedy, the likeliest token, the first of equals
  int64_t top_k = 0;                // the k likeliest; 0: all
  double top_p = 1.0;               // the fewest likeliest whose probabilities sum to at least this; 1: all
  double min_p = 0.0;               // those at least this fraction of the likeliest's probability; 0: all
  double repetition_penalty = 1.0;  // of ids seen before: negative logits times this, others divided by it (CTRL)

  Fields fields();
  void check() const;  // throws Error naming the option
};

// `seen`: the ids the penalty applies to, each once. uniform in [0, 1). Throws Error on NaN and infinite logits (-inf
// is an id that cannot come).
int64_t sample(std::span<const double> logits, const SamplerOptions& options, std::span<const int64_t> seen,
               double uniform);

// log softmax(logits)[id]: what the model itself gives the token, before any of the steps above.
double log_probability(std::span<const double> logits, int64_t id);

}  // namespace ssm
