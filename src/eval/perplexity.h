// How well a model predicts a stream of tokens: mean nats a token, perplexity, bits a byte. Any length at constant
// memory.
//
//   nats = sum of -log p(token_i | what came before) / number of scored tokens;  perplexity = e^nats          (1)
//   bits a byte = sum of nats / ln 2 / bytes the scored tokens stand for                                      (2)
//
// Without a context the state is carried from the first token to the last: every token but the first is scored, each
// predicted from everything before it. With `context` N and `stride` S, windows of N tokens begin every S tokens, each
// from a zero state; a window scores those of its tokens that no window before it has scored and that have one before
// them in it. README.md compares this with the windows of published tables.
#pragma once

#include <cmath>
#include <functional>
#include <span>
#include <string>

#include "core/threads.h"
#include "data/token_file.h"
#include "models/model.h"

namespace ssm {

struct PerplexityOptions {
  int64_t context = 0;  // tokens, at least 2; 0: carry the state over the whole stream
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

// Ids that come one after the other. Fills `out` from its beginning and returns how many came: fewer than it holds at
// the end of the stream only.
struct TokenStream {
  std::function<size_t(std::span<int64_t> out)> next;
  std::string origin;  // opens error messages
};
TokenStream stream_of(const Tokens& tokens);

// After each piece, with the result so far; false stops, and the result so far is returned.
using PerplexityProgress = std::function<bool(const Perplexity& so_far)>;

// `bytes_of_id`: bytes each id stands for, or empty when nobody knows. Throws Error on fewer than 2 tokens, on ids
// outside the vocabulary and when a loss is not finite.
Perplexity perplexity(const Model& model, Threads& threads, const TokenStream& tokens, const PerplexityOptions& options,
                      std::span<const int64_t> bytes_of_id = {}, const PerplexityProgress& progress = nullptr);

}  // namespace ssm
