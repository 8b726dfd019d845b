// The stack, under the reference implementation's parameter names.
#include "models/language_model.h"

#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/linear/linear.h"
#include "ops/rms_norm/rms_norm.h"

namespace ssm {

LanguageModel::LanguageModel(ParamStore& store, const ModelConfig& config) : config_(config) {
  const Params root(store), backbone = root.sub("backbone");
  const int64_t d = config.d_model, vocab = config.padded_vocab();
  const Flags norm_flags{.no_decay = true, .keep_f32 = true};
  const Init one = Init::constant(1);

  embedding_ = backbone.get("embedding.weight", {vocab, d}, Init::normal(0.02));
  for (int64_t i = 0; i < config.n_layer; ++i) {
    const std::string name = std::to_string(i);
    const Params layer = backbone.sub("layers").sub(name);
    Block block{.norm = layer.get("norm.weight", {d}, one, norm_flags),
                .mixer = config.mixer->build(layer.sub("mixer"), d, config.n_layer),
                .first_state = state_spec_.size()};
    for (StateEntry& entry : block.mixer->state())
      state_spec_.push_back({"layers." + name + "." + entry.name, entry.shape, entry.dtype});
    block.states = state_spec_.size() - block.first_state;
    blocks_.push_back(std::move(block));
  }
  final_norm_ = backbone.get("norm_f.weight", {d}, one, norm_flags);
  head_ = config.tie_embeddings ? embedding_ : root.get("lm_head.weight", {vocab, d}, Init::fan_in(d));
  // Tied checkpoints may carry the head a second time.
  store.expect_all_used("checkpoint", {config.tie_embeddings ? "lm_head.weight" : ""});
}

Var LanguageModel::hidden(const Ctx& ctx, const Tensor& ids, const Seqs& seqs, State state) const {
  require(seqs.tokens() == ids.count(), "the sequences have ", seqs.tokens(), " tokens, found ", ids.count(), " ids");
  require(state.empty() || state.size() == state_spec_.size(), "expected ", state_spec_.size(),
          " state tensors, found ", state.size());
  Var x = embedding(ctx, ids, embedding_), residual;  // (t, d); the residual stream stays f32
  for (const Block& block : blocks_) {
    const State rows = state.empty() ? State() : state.subspan(block.first_state, block.states);
    const auto run = [this, &block, seqs, rows](const Ctx& c, const std::vector<Var>& in) -> std::vector<Var> {
      const NormedResidual normed = rms_norm(c, in[0], in[1], block.norm, config_.norm_epsilon);
      return {block.mixer->forward(c, normed.y, seqs, rows), normed.residual};
    };
    // The first block's residual stream is its own input, whose gradient a second run could not tell apart.
    const bool again = ctx.recompute == Recompute::blocks && state.empty() && residual;
    const std::vector<Var> out = again ? recompute(ctx, "block", false, {x, residual}, run) : run(ctx, {x, residual});
    x = out[0];
    residual = out[1];
  }
  return rms_norm(ctx, x, residual, final_norm_, config_.norm_epsilon).y;
}

// In f32 on a GPU too: a rounding to bf16 would be the largest error of all.
Var LanguageModel::logits(const Ctx& ctx, const Var& hidden) const {
  return linear(ctx, hidden, head_, {}, accumulator_of(hidden.value.dtype()));
}

Var LanguageModel::loss(const Ctx& ctx, const Tensor& ids, const Tensor& targets, const Seqs& seqs, State state) const {
  return linear_cross_entropy(ctx, hidden(ctx, ids, seqs, state), head_, targets);
}

Tensor LanguageModel::token_losses(const Ctx& ctx, const Tensor& ids, const Tensor& targets, const Seqs& seqs,
                                   State state) const {
  return linear_token_losses(ctx, hidden(ctx, ids, seqs, state).value, head_.value, targets);
}

}  // namespace ssm
