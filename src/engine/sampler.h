// From the logits of one position to the next token. The token is a function of the arguments, so a run is reproduced
// by reproducing `uniform` (core/rng.h, position = tokens written so far).
//
// The steps, in this order: repetition penalty, frequency and presence penalty, temperature, top-k, top-p, min-p; each
// works on what the step before left. README.md says what other programs do differently. Every step is linear in the
// vocabulary: nothing is sorted beyond the k of top-k.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/config.h"
#include "engine/history.h"

namespace ssm {

struct SamplerOptions {
  double temperature = 1.0;         // logits are divided by it; 0: greedy, the likeliest token, the first of equals
  int64_t top_k = 0;                // the k likeliest; 0: all
  double top_p = 1.0;               // the fewest likeliest whose probabilities sum to at least this; 1: all
  double min_p = 0.0;               // those at least this fraction of the likeliest's probability; 0: all
  double repetition_penalty = 1.0;  // of ids seen before: negative logits times this, others divided by it (CTRL)
  double frequency_penalty = 0.0;   // off the logit for each time the id was written (OpenAI)
  double presence_penalty = 0.0;    // off the logit once the id was written (OpenAI)

  Fields fields();
  void check() const;  // throws Error naming the option
};

// The options and the memory the steps work in, kept from token to token. For one thread at a time.
class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options) : options_(options) {}

  // uniform in [0, 1). Throws Error on NaN and infinite logits (-inf is an id that cannot come).
  int64_t choose(std::span<const float> logits, std::span<const SeenId> seen, double uniform);
  int64_t choose(std::span<const double> logits, std::span<const SeenId> seen, double uniform);

 private:
  template <class Logit>
  int64_t choose_from(std::span<const Logit> logits, std::span<const SeenId> seen, double uniform,
                      std::vector<Logit>& penalised);
  double sum_blocks();
  void keep_top_p();
  int64_t draw(double uniform);

  SamplerOptions options_;
  std::vector<float> penalised_f32_;
  std::vector<double> penalised_f64_;
  std::vector<float> weights_;       // (vocab): proportional to probabilities, 1 for the likeliest, 0: cannot come
  std::vector<double> block_sums_;   // of weights_
  std::vector<double> bin_sums_;     // keep_top_p
  std::vector<int64_t> candidates_;  // keep_top_p
};

// The k likeliest ids, likeliest first, the lower id first among equals; all when there are fewer than k.
std::vector<int64_t> likeliest(std::span<const float> logits, int64_t k);
std::vector<int64_t> likeliest(std::span<const double> logits, int64_t k);

// log of the sum of e^logit: logits[id] minus this is the log probability that the model itself gives an id, before any
// of the steps above. Throws Error as choose() does.
double log_sum_exp(std::span<const float> logits);
double log_sum_exp(std::span<const double> logits);

}  // namespace ssm
