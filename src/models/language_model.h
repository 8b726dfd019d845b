// The language model: embedding, a stack of blocks (Add -> Norm -> Mixer, and -> Add -> Norm -> MLP where there is
// one), a final norm, the head. It knows stacking and names; what a block does to the tokens is its mixer's business.
#pragma once

#include <memory>
#include <vector>

#include "core/params.h"
#include "models/gated_mlp.h"
#include "models/model_config.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace ssm {

class LanguageModel {
 public:
  // Declares all parameters in `store`: initialised, or taken from the store's source.
  LanguageModel(ParamStore& store, const ModelConfig& config);

  // ids, i64 (t) -> the last norm's output (t, d). `state`: all entries of state_spec(), or empty.
  // Rounding::none: f32 on a GPU too where activations are narrower, for who scores. Its logits are twice the work, and
  // it has no gradient.
  enum class Rounding { as_activations, none };
  Var hidden(const Ctx& ctx, const Tensor& ids, const Seqs& seqs, State state = {},
             Rounding rounding = Rounding::as_activations) const;
  // Any rows of that -> logits (rows, padded vocab), f32 (f64 where the model is).
  Var logits(const Ctx& ctx, const Var& hidden) const;
  // Mean nats a token over targets, i64 (t), that are not negative; the logits are never stored whole.
  Var loss(const Ctx& ctx, const Tensor& ids, const Tensor& targets, const Seqs& seqs, State state = {}) const;
  // The same of targets that were checked, with the ids of both where the model is.
  Var loss(const Ctx& ctx, const Tensor& ids, const Targets& targets, const Seqs& seqs) const;
  // Nats of each target (t), without a tape.
  Tensor token_losses(const Ctx& ctx, const Tensor& ids, const Tensor& targets, const Seqs& seqs,
                      State state = {}) const;

  const StateSpec& state_spec() const { return state_spec_; }
  const ModelConfig& config() const { return config_; }

 private:
  struct Block {
    Var norm;
    std::unique_ptr<Mixer> mixer;
    size_t first_state, states;  // its entries of the state
    Var mlp_norm;
    std::unique_ptr<GatedMlp> mlp;  // null: none
  };
  std::vector<Var> run(const Ctx& ctx, const Block& block, const std::vector<Var>& x_and_residual, DType activations,
                       const Seqs& seqs, State state) const;
  Tensor position_ids(const Ctx& ctx, const Seqs& seqs, Var* counts) const;

  ModelConfig config_;
  Var embedding_, positions_, final_norm_, head_;
  std::vector<Block> blocks_;
  StateSpec state_spec_;
};

}  // namespace ssm
