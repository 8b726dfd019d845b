#include "eval/perplexity.h"

#include <algorithm>
#include <vector>

#include "core/context.h"
#include "core/error.h"
#include "core/sequences.h"
#include "core/state.h"

namespace ssm {
namespace {

// Tokens given to the model at once: enough for efficient matrix products, a few MB of activations.
constexpr int64_t kPiece = 1024;

// The part of a stream that windows still need, by place in the stream.
class Passage {
 public:
  Passage(const TokenStream& stream, int64_t vocab) : stream_(stream), vocab_(vocab) {}

  // Reads on until the stream's first `end` tokens have come, or all of them.
  void reach(int64_t end) {
    if (ended_ || end <= this->end()) return;
    const auto had = ids_.size();
    ids_.resize(had + static_cast<size_t>(end - this->end()));
    const size_t got = stream_.next(std::span(ids_).subspan(had));
    ended_ = had + got < ids_.size();
    ids_.resize(had + got);
    for (size_t i = had; i < ids_.size(); ++i)
      require(0 <= ids_[i] && ids_[i] < vocab_, stream_.origin, ": token ", begin_ + static_cast<int64_t>(i), " is ",
              ids_[i], ", the model's vocabulary is 0 to ", vocab_ - 1);
  }
  void forget_before(int64_t begin) {
    const auto count = std::min(ids_.size(), static_cast<size_t>(begin - begin_));
    ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(count));
    begin_ += static_cast<int64_t>(count);
  }
  int64_t end() const { return begin_ + static_cast<int64_t>(ids_.size()); }  // tokens that have come
  const int64_t* at(int64_t place) const { return ids_.data() + (place - begin_); }
  const std::string& origin() const { return stream_.origin; }

 private:
  const TokenStream& stream_;
  int64_t vocab_;
  std::vector<int64_t> ids_;  // from place begin_ on
  int64_t begin_ = 0;
  bool ended_ = false;
};

class Scorer {
 public:
  Scorer(const Model& model, Threads& threads, const Passage& tokens, std::span<const int64_t> bytes_of_id)
      : model_(model),
        ctx_{.device = model.options().device, .threads = &threads},
        tokens_(tokens),
        bytes_of_id_(bytes_of_id) {}

  const Perplexity& result() const { return result_; }
  int64_t last() const { return last_; }

  // `count` sequences of `length` inputs, the first from token `begin` on, each `step` after the one before it. Scores
  // the targets, of those sequences, that come after the last one scored.
  void score(int64_t begin, int64_t count, int64_t length, int64_t step, State state) {
    const Tensor inputs = Tensor::empty({count * length}, DType::i64);
    const Tensor targets = Tensor::empty({count * length}, DType::i64);
    for (int64_t s = 0; s < count; ++s) {
      const int64_t* const ids = tokens_.at(begin + s * step);
      std::copy_n(ids, length, inputs.data<int64_t>() + s * length);
      std::copy_n(ids + 1, length, targets.data<int64_t>() + s * length);
    }
    const Tensor losses =
        model_.lm().token_losses(ctx_, inputs, targets, Seqs::dense(count, length), state).on(Device::cpu()).to(DType::f64);  // (t)
    for (int64_t row = 0; row < count * length; ++row) {
      const int64_t target = begin + row / length * step + row % length + 1;  // its place in the stream
      if (target > last_) add(target, targets.data<int64_t>()[row], losses.data<double>()[row]);
    }
  }

 private:
  void add(int64_t target, int64_t id, double nats) {
    require(std::isfinite(nats), "the loss of token ", target, " is ", nats,
            "; the model's weights are damaged, or training has diverged");
    last_ = target;
    result_.total += nats;
    ++result_.tokens;
    if (!bytes_of_id_.empty()) result_.bytes += bytes_of_id_[static_cast<size_t>(id)];
  }

  const Model& model_;
  Ctx ctx_;
  const Passage& tokens_;
  std::span<const int64_t> bytes_of_id_;
  Perplexity result_;
  int64_t last_ = 0;  // place of the last scored token
};

}  // namespace

TokenStream stream_of(const Tokens& tokens) {
  return {.next =
              [tokens, at = int64_t{0}](std::span<int64_t> out) mutable {
                const auto count = std::min<size_t>(out.size(), static_cast<size_t>(tokens.count() - at));
                tokens.read(at, out.first(count));
                at += static_cast<int64_t>(count);
                return count;
              },
          .origin = tokens.origin()};
}

Perplexity perplexity(const Model& model, Threads& threads, const TokenStream& stream, const PerplexityOptions& options,
                      std::span<const int64_t> bytes_of_id, const PerplexityProgress& progress) {
  const int64_t context = options.context, stride = options.stride > 0 ? options.stride : context;
  require(context == 0 || context >= 2, "context is ", context,
          ", expected at least 2, for a token is predicted from those before it");
  require(stride <= context, "stride is ", stride, ", expected at most the context, ", context);
  Passage tokens(stream, model.config().vocab_size);
  tokens.reach(2);
  require(tokens.end() >= 2, tokens.origin(), ": ", tokens.end(),
          " tokens; expected at least 2, for a token is predicted from those before it");
  Scorer scorer(model, threads, tokens, bytes_of_id);
  const auto goes_on = [&] { return !progress || progress(scorer.result()); };

  if (context == 0) {
    StatePool pool(model.lm().state_spec(), 1, model.options().device);
    for (int64_t begin = 0;; begin += kPiece) {
      tokens.reach(begin + kPiece + 1);
      const int64_t length = std::min(kPiece, tokens.end() - 1 - begin);
      if (length <= 0) break;
      scorer.score(begin, 1, length, length, pool.state());
      tokens.forget_before(begin + length);
      if (!goes_on()) break;
    }
    return scorer.result();
  }
  // As many windows at once as make up a piece. What is left at the end is a shorter window, unless the windows before
  // it have reached the last token.
  const int64_t inputs = context - 1, together = std::max<int64_t>(1, kPiece / inputs);
  for (int64_t begin = 0;;) {
    tokens.reach(begin + (together - 1) * stride + context);
    const int64_t left = tokens.end() - begin;  // tokens
    if (left < 2 || scorer.last() == tokens.end() - 1) break;
    const int64_t whole = left >= context ? std::min(together, (left - context) / stride + 1) : 0;
    scorer.score(begin, std::max<int64_t>(1, whole), std::min(inputs, left - 1), stride, {});
    begin += std::max<int64_t>(1, whole) * stride;
    tokens.forget_before(begin);
    if (!goes_on()) break;
  }
  return scorer.result();
}

}  // namespace ssm
