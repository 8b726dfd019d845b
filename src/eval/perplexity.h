// How well a model predicts a stream of tokens: mean nats a token, perplexity, bits a byte. Any length at constant
// memory.
//
//   nats = sum of -log p(token_i | what came before) / number of scored tokens;  perplexity = e^nats          (1)
//   bits a byte = sum of nats / ln 2 / bytes the scored tokens stand for                                      (2)
//
// Every token but the first is scored exactly once. Without a context the state is carried from the first token to the
// last, so a token is predicted from everything before it. With `context` N and `stride` S windows of N inputs begin
// every S tokens, each from a zero state, and a window scores the targets that no window before it has scored: all N
// of the first, then S a window, each from at least N - S + 1 tokens before it.
#pragma once

#include <cmath>
#include <functional>
#include <span>

#include "core/threads.h"
#include "data/token_file.h"
#include "models/model.h"

namespace ssm {

struct PerplexityOptions {
  int64_t context = 0;  // 0: carry the state over the whole stream
  int64_t stride = 0;   // 0: context, windows side by side
};

struct Perplexity {
  int64_t tokens = 0;  // scored
  int64_t bytes = 0;   // that they stand for; 0: not known
  double total = 0;    // nats

  double nats() const { return total / static_cast<double>(tokens); }
  double perplexity() const { return std::exp(nats()); }
  double bits_per_byte() const { return total / std::log(2.0) / static_cast<double>(bytes); }
};

// After each piece, with the result so far; false stops, and the result so far is returned.
using PerplexityProgress = std::function<bool(const Perplexity& so_far)>;

// `bytes_of_id`: bytes each id stands for, or empty when nobody knows. Throws Error on fewer than 2 tokens, on ids
// outside the vocabulary and when a loss is not finite.
Perplexity perplexity(const Model& model, Threads& threads, const Tokens& tokens, const PerplexityOptions& options,
                      std::span<const int64_t> bytes_of_id = {}, const PerplexityProgress& progress = nullptr);

}  // namespace ssm
