// A step's order: update, evaluate, log, checkpoint. So a checkpoint's log is never behind it. Where nothing but the
// log follows a step, the next one has begun meanwhile.
#include "train/training.h"

#include "core/error.h"

namespace ssm {

Training train(Trainer& trainer, RunDirectory& directory, const Dataset* held_back,
               const std::function<GoOn(const StepResult&)>& after_step) {
  const TrainConfig& config = trainer.state().config;
  const auto save = [&] {
    directory.save(trainer.state().step, config.keep, [&](const Path& to) { trainer.write_checkpoint(to); });
  };
  const auto is_due = [](int64_t every, int64_t step) { return every > 0 && step % every == 0; };
  const int64_t saved = directory.saved_step(), made = trainer.state().step;
  require(saved == made || saved < 0, directory.path().string(), " is at step ", saved, ", the trainer at ", made,
          "; has another process gone on with this run meanwhile?");
  save();
  bool stopping = false;
  while (!trainer.done()) {
    const int64_t next = trainer.state().step + 1;
    const bool evaluates = held_back && is_due(config.eval_every, next), saves = is_due(config.save_every, next);
    StepResult result = trainer.step(evaluates || saves || stopping ? Ahead::no : Ahead::yes);
    if (evaluates) result.eval_loss = trainer.evaluate(*held_back);
    directory.log(result.json());
    if (saves) save();
    stopping = after_step(result) == GoOn::no || stopping;
    if (stopping && !trainer.done() && !trainer.is_ahead()) {
      save();
      return Training::stopped;
    }
  }
  save();
  return Training::finished;
}

}  // namespace ssm
