// The stack, under the reference implementation's parameter names.
#include "models/language_model.h"

#include "ops/embedding/embedding.h"
#include "ops/linear/linear.h"
#include "ops/rms_norm/rms_norm.h"

namespace ssm {

namespace {

void check_runs_here(const std::string& mixer, const Device& device) {
  require(!device.is_cuda() || mixer_kind(mixer).runs_on == RunsOn::host_and_gpu, "the mixer ", mixer,
          " does not run on a GPU yet; use --device cpu");
}

}  // namespace

LanguageModel::LanguageModel(ParamStore& store, const ModelConfig& config) : config_(config) {
  const Params root(store), backbone = root.sub("backbone");
  const int64_t d = config.d_model, vocab = config.padded_vocab();
  const Flags norm_flags{.no_decay = true, .keep_f32 = true};
  const Init one = Init::constant(1);

  embedding_ = backbone.get("embedding.weight", {vocab, d}, Init::normal(0.02));
  if (config.learned_positions > 0) {
    positions_ = backbone.get("positions.weight", {config.learned_positions, d}, Init::normal(0.02), norm_flags);
    state_spec_.push_back({"position", {1}, DType::i64});
  }
  for (int64_t i = 0; i < config.n_layer; ++i) {
    const std::string name = std::to_string(i);
    const Params layer = backbone.sub("layers").sub(name);
    const bool attends = config.attends(i);
    check_runs_here(attends ? kAttention : config.layer, store.device());
    Block block{.norm = layer.get("norm.weight", {d}, one, norm_flags),
                .mixer = (attends ? config.attention : config.mixer)->build(layer.sub("mixer"), d, config.n_layer),
                .first_state = state_spec_.size()};
    for (StateEntry& entry : block.mixer->state()) {
      entry.name = "layers." + name + "." + entry.name;
      state_spec_.push_back(std::move(entry));
    }
    block.states = state_spec_.size() - block.first_state;
    if (config.d_intermediate > 0) {
      block.mlp_norm = layer.get("norm2.weight", {d}, one, norm_flags);
      block.mlp = std::make_unique<GatedMlp>(layer.sub("mlp"), d, config.d_intermediate, config.n_layer);
    }
    blocks_.push_back(std::move(block));
  }
  final_norm_ = backbone.get("norm_f.weight", {d}, one, norm_flags);
  head_ = config.tie_embeddings ? embedding_ : root.get("lm_head.weight", {vocab, d}, Init::fan_in(d));
  // Tied checkpoints may carry the head a second time.
  store.expect_all_used("checkpoint", {config.tie_embeddings ? "lm_head.weight" : ""});
}

// x and the residual stream after a block.
std::vector<Var> LanguageModel::run(const Ctx& ctx, const Block& block, const std::vector<Var>& x_and_residual,
                                    DType activations, const Seqs& seqs, State state) const {
  const NormedResidual normed =
      rms_norm(ctx, x_and_residual[0], x_and_residual[1], block.norm, config_.norm_epsilon, activations);
  const Var mixed = block.mixer->forward(ctx, normed.y, seqs, state);
  if (!block.mlp) return {mixed, normed.residual};
  const NormedResidual again = rms_norm(ctx, mixed, normed.residual, block.mlp_norm, config_.norm_epsilon, activations);
  return {block.mlp->forward(ctx, again.y), again.residual};
}

// The place of each row in its sequence, i64 (t).
Tensor LanguageModel::position_ids(const Ctx& ctx, const Seqs& seqs, Var* counts) const {
  const std::vector<int64_t> before = token_counts(counts ? counts->value : Tensor(), seqs);
  const Tensor ids = Tensor::empty({seqs.tokens()}, DType::i64);
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const auto at = static_cast<size_t>(s);
    require(before[at] >= 0 && before[at] + seqs.length(s) <= config_.learned_positions, "a sequence of ",
            before[at] + seqs.length(s), " tokens; this model has learned positions for ", config_.learned_positions);
    for (int64_t row = 0; row < seqs.length(s); ++row) ids.data<int64_t>()[seqs.offsets[at] + row] = before[at] + row;
  }
  if (counts) advance_counts(ctx, *counts, seqs);
  return ids;
}

Var LanguageModel::hidden(const Ctx& ctx, const Tensor& ids, const Seqs& seqs, State state, Rounding rounding) const {
  require(seqs.tokens() == ids.count(), "the sequences have ", seqs.tokens(), " tokens, found ", ids.count(), " ids");
  require(state.empty() || state.size() == state_spec_.size(), "expected ", state_spec_.size(),
          " state tensors, found ", state.size());
  Var x = embedding(ctx, ids, embedding_), residual;  // (t, d); the residual stream stays f32
  // The first norm adds the two.
  if (positions_) residual = embedding(ctx, position_ids(ctx, seqs, state.empty() ? nullptr : &state[0]), positions_);
  const DType activations = x.value.dtype();
  for (const Block& block : blocks_) {
    const State rows = state.empty() ? State() : state.subspan(block.first_state, block.states);
    const auto run_block = [this, &block, activations, seqs, rows](const Ctx& c, const std::vector<Var>& in) {
      return run(c, block, in, activations, seqs, rows);
    };
    // The first block's residual stream is its own input, whose gradient a second run could not tell apart.
    const bool again = ctx.recompute == Recompute::blocks && state.empty() && residual;
    const std::vector<Var> out =
        again ? recompute(ctx, "block", false, {x, residual}, run_block) : run_block(ctx, {x, residual});
    x = out[0];
    residual = out[1];
  }
  if (rounding == Rounding::as_activations)
    return rms_norm(ctx, x, residual, final_norm_, config_.norm_epsilon, activations).y;
  require(!ctx.tape, "hidden states that are not rounded have no gradient");
  const Var wide{x.value.to(accumulator_of(activations)), {}};
  return rms_norm(ctx, wide, residual, final_norm_, config_.norm_epsilon).y;
}

// In f32 on a GPU too: a rounding to bf16 would be the largest error of all.
Var LanguageModel::logits(const Ctx& ctx, const Var& hidden) const {
  return linear(ctx, hidden, head_, {}, accumulator_of(hidden.value.dtype()));
}

Var LanguageModel::loss(const Ctx& ctx, const Tensor& ids, const Tensor& targets, const Seqs& seqs, State state) const {
  return linear_cross_entropy(ctx, hidden(ctx, ids, seqs, state), head_, targets);
}

Var LanguageModel::loss(const Ctx& ctx, const Tensor& ids, const Targets& targets, const Seqs& seqs) const {
  return linear_cross_entropy(ctx, hidden(ctx, ids, seqs), head_, targets);
}

Tensor LanguageModel::token_losses(const Ctx& ctx, const Tensor& ids, const Tensor& targets, const Seqs& seqs,
                                   State state) const {
  return linear_token_losses(ctx, hidden(ctx, ids, seqs, state, Rounding::none).value, head_.value, targets);
}

}  // namespace ssm
