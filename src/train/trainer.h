// The training loop's inside: one call is one step. A step is a function of the parameters, the moments, the settings
// and its number; nothing else is remembered, so a run that was interrupted goes on as if it had not been.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/files.h"
#include "data/loader.h"
#include "models/model.h"
#include "train/checkpoint.h"
#include "train/gpu_steps.h"
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

// Whether a step may begin on a GPU before the one in front of it was looked at: it must, or the GPU waits for the
// host.
enum class Ahead { no, yes };

class Trainer {
 public:
  // The model must be trainable. `data` gives the micro-batches: step s (from 0) reads batches s * accumulate ... of
  // it, which is what a batch `accumulate` times as large would hold. All arguments must outlive this.
  Trainer(Model& model, const Dataset& data, Threads& threads, TrainingState start);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Throws Error when the loss or a gradient is NaN or infinite, with step and parameter; nothing is changed then.
  // With Ahead::yes the step after this one, if there is one, has begun on a GPU when this returns: parameters are
  // those of a later step than state() says until step() was called for it, with Ahead::no.
  StepResult step(Ahead ahead = Ahead::no);
  bool is_ahead() const { return !begun_.empty(); }
  // Mean nats a token over a data set, of which one batch at a time is in memory.
  double evaluate(const Dataset& held_back) const;

  bool done() const { return state_.step >= state_.config.rate.steps; }
  const TrainingState& state() const { return state_; }
  void write_checkpoint(const Path& directory) const {
    require(!is_ahead(), "a checkpoint between two steps: the next one has begun");
    write_training_checkpoint(directory, model_, optimizer_, state_);
  }
  void load_optimizer(const Path& checkpoint) { ssm::load_optimizer(checkpoint, optimizer_); }

  // Bytes that one micro-batch of the last step kept for its backward, by op.
  const std::vector<SavedBytes>& saved_bytes() const { return saved_bytes_; }
  // Kernels of a micro-batch that a GPU replays with one call; 0 where they are queued one by one.
  int64_t recorded_kernels() const;
  std::string why_not_recorded() const;  // "" unless recording failed

 private:
  using Clock = std::chrono::steady_clock;
  struct Begun {
    StepResult result;  // on a GPU without loss and norm
    Clock::time_point begin;
  };
  TokenBatch batch_of(int64_t number);
  Tensor differentiate(int64_t part, const Tensor& ids, const Targets& targets, const Seqs& seqs);
  void begin();
  void compute(StepResult& step);
  void queue(StepResult& step);
  void draw_after(int64_t batch);
  StepResult finish();
  void take_numbers(StepResult& step);
  [[noreturn]] void explain_loss(const StepResult& step) const;

  Model& model_;
  const Dataset& data_;
  Ctx ctx_;
  Optimizer optimizer_;
  TrainingState state_;
  Tensor seed_;                                          // of each micro-batch's backward, (1)
  std::shared_ptr<GpuSteps> gpu_;                        // null on the host
  Tensor norm_;                                          // of the newest update on a GPU
  std::deque<Begun> begun_;                              // on a GPU at most 2
  Clock::time_point finished_{};                         // the step before
  std::optional<std::pair<int64_t, TokenBatch>> drawn_;  // ahead of its step: its number, and it
  std::vector<SavedBytes> saved_bytes_;
};

}  // namespace ssm
