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

class Scorer {
 public:
  Scorer(const Model& model, Threads& threads, const Tokens& tokens, std::span<const int64_t> bytes_of_id)
      : model_(model),
        ctx_{.device = model.options().device, .threads = &threads},
        tokens_(tokens),
        bytes_of_id_(bytes_of_id) {}

  int64_t targets() const { return tokens_.count() - 1; }
  const Perplexity& result() const { return result_; }

  // `count` sequences of `length` inputs, the first from token `begin` on, each `step` after the one before it. Scores
  // the targets, of those sequences, that come after the last one scored.
  void score(int64_t begin, int64_t count, int64_t length, int64_t step, State state) {
    std::vector<int64_t> ids(static_cast<size_t>(length) + 1);
    const Tensor inputs = Tensor::empty({count * length}, DType::i64);
    const Tensor targets = Tensor::empty({count * length}, DType::i64);
    for (int64_t s = 0; s < count; ++s) {
      tokens_.read(begin + s * step, ids);
      check(ids, begin + s * step);
      std::copy_n(ids.begin(), length, inputs.data<int64_t>() + s * length);
      std::copy_n(ids.begin() + 1, length, targets.data<int64_t>() + s * length);
    }
    const Tensor losses =
        model_.lm().token_losses(ctx_, inputs, targets, Seqs::dense(count, length), state).to(DType::f64);  // (t)
    for (int64_t row = 0; row < count * length; ++row) {
      const int64_t target = begin + row / length * step + row % length + 1;  // its place in the stream
      if (target <= result_.tokens) continue;                                 // tokens 1 .. result_.tokens are scored
      add(target, targets.data<int64_t>()[row], losses.data<double>()[row]);
    }
  }

 private:
  void check(std::span<const int64_t> ids, int64_t begin) const {
    const int64_t vocab = model_.config().vocab_size;
    for (size_t i = 0; i < ids.size(); ++i)
      require(0 <= ids[i] && ids[i] < vocab, tokens_.origin(), ": token ", begin + static_cast<int64_t>(i), " is ",
              ids[i], ", the model's vocabulary is 0 to ", vocab - 1);
  }

  void add(int64_t target, int64_t id, double nats) {
    require(std::isfinite(nats), "the loss of token ", target, " is ", nats,
            "; the model's weights are damaged, or training has diverged");
    result_.total += nats;
    ++result_.tokens;
    if (!bytes_of_id_.empty()) result_.bytes += bytes_of_id_[static_cast<size_t>(id)];
  }

  const Model& model_;
  Ctx ctx_;
  const Tokens& tokens_;
  std::span<const int64_t> bytes_of_id_;
  Perplexity result_;
};

}  // namespace

Perplexity perplexity(const Model& model, Threads& threads, const Tokens& tokens, const PerplexityOptions& options,
                      std::span<const int64_t> bytes_of_id, const PerplexityProgress& progress) {
  require(tokens.count() >= 2, tokens.origin(), ": ", tokens.count(),
          " tokens; expected at least 2, for a token is predicted from those before it");
  const int64_t context = options.context, stride = options.stride > 0 ? options.stride : context;
  require(context >= 0 && stride <= context, "stride is ", stride, ", expected at most the context, ", context);
  Scorer scorer(model, threads, tokens, bytes_of_id);
  const auto goes_on = [&] { return !progress || progress(scorer.result()); };

  if (context == 0) {
    StatePool pool(model.lm().state_spec(), 1);
    for (int64_t begin = 0; begin < scorer.targets(); begin += kPiece) {
      const int64_t length = std::min(kPiece, scorer.targets() - begin);
      scorer.score(begin, 1, length, length, pool.state());
      if (!goes_on()) break;
    }
    return scorer.result();
  }
  // As many windows at once as make up a piece; what is left at the end is a shorter window.
  int64_t begin = 0;
  while (scorer.result().tokens < scorer.targets()) {
    const int64_t whole = begin + context <= scorer.targets() ? (scorer.targets() - context - begin) / stride + 1 : 0;
    const int64_t count = std::clamp<int64_t>(std::max<int64_t>(1, kPiece / context), 0, whole);
    if (count == 0)
      scorer.score(begin, 1, scorer.targets() - begin, stride, {});
    else
      scorer.score(begin, count, context, stride, {});
    begin += std::max<int64_t>(1, count) * stride;
    if (!goes_on()) break;
  }
  return scorer.result();
}

}  // namespace ssm
