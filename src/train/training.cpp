// A step's order: update, evaluate, log, checkpoint. So a checkpoint's log is never behind it.
#include "train/training.h"

#include "core/error.h"

namespace ssm {

Training train(Trainer& trainer, RunDirectory& directory, const Dataset* held_back,
               const std::function<GoOn(const StepResult&)>& after_step) {
  const TrainConfig& config = trainer.state().config;
  const auto save = [&] {
    directory.save(trainer.state().step, config.keep, [&](const Path& to) { trainer.write_checkpoint(to); });
  };
  const auto is_due = [&](int64_t every) { return every > 0 && trainer.state().step % every == 0; };
  const int64_t saved = directory.saved_step(), made = trainer.state().step;
  require(saved == made || saved < 0, directory.path().string(), " is at step ", saved, ", the trainer at ", made,
          "; has another process gone on with this run meanwhile?");
  save();
  while (!trainer.done()) {
    StepResult result = trainer.step();
    if (held_back && is_due(config.eval_every)) result.eval_loss = trainer.evaluate(*held_back);
    directory.log(result.json());
    if (is_due(config.save_every)) save();
    if (after_step(result) == GoOn::no && !trainer.done()) {
      save();
      return Training::stopped;
    }
  }
  save();
  return Training::finished;
}

}  // namespace ssm
