// The training loop's inside: one call is one step. A step is a function of the parameters, the moments, the settings
// and its number; nothing else is remembered, so a run that was interrupted goes on as if it had not been.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/files.h"
#include "data/loader.h"
#include "models/model.h"
#include "train/checkpoint.h"
#include "train/optimizer.h"
#include "train/train_config.h"

namespace ssm {

struct StepResult {
  int64_t step = 0;      // from 1
  double loss = 0;       // mean nats a token, before the update
  double grad_norm = 0;  // of all parameters, before clipping
  double lr = 0;
  int64_t tokens = 0;  // of this step
  double seconds = 0;  // of this step
  std::optional<double> eval_loss;
  std::string json() const;  // its line in log.jsonl
};

class Trainer {
 public:
  // The model must be trainable. `data` gives the micro-batches: step s (from 0) reads batches s * accumulate ... of
  // it, which is what a batch `accumulate` times as large would hold. All arguments must outlive this.
  Trainer(Model& model, const Dataset& data, Threads& threads, TrainingState start);

  // Throws Error when the loss or a gradient is NaN or infinite, with step and parameter; nothing is changed then.
  StepResult step();
  // Mean nats a token over a data set, of which one batch at a time is in memory.
  double evaluate(const Dataset& held_back) const;

  bool done() const { return state_.step >= state_.config.rate.steps; }
  const TrainingState& state() const { return state_; }
  void write_checkpoint(const Path& directory) const {
    write_training_checkpoint(directory, model_, optimizer_, state_);
  }
  void load_optimizer(const Path& checkpoint) { ssm::load_optimizer(checkpoint, optimizer_); }

  // Bytes that one micro-batch of the last step kept for its backward, by op.
  const std::vector<SavedBytes>& saved_bytes() const { return saved_bytes_; }

 private:
  TokenBatch batch_of(int64_t number);
  double accumulate_gradients();
  [[noreturn]] void explain_loss(double loss) const;

  Model& model_;
  const Dataset& data_;
  Ctx ctx_;
  Optimizer optimizer_;
  TrainingState state_;
  int64_t step_tokens_ = 0;
  std::optional<std::pair<int64_t, TokenBatch>> drawn_;  // ahead of its step: its number, and it
  std::vector<SavedBytes> saved_bytes_;
};

}  // namespace ssm
