// The loop around the steps: evaluation, log and checkpoints at their times.
#pragma once

#include <functional>

#include "data/loader.h"
#include "train/run_directory.h"
#include "train/trainer.h"

namespace ssm {

enum class GoOn { yes, no };
enum class Training { finished, stopped };

// Steps until the run is done or `after_step` says no; either way the last step made is saved. A step that had begun on
// a GPU by then is finished, and told of, too. `held_back`, for
// evaluation, may be null. A checkpoint comes before the first step too: a full disk shows at once, and there is no
// moment at which a killed run cannot be resumed. An Error leaves the newest checkpoint as it was.
Training train(Trainer& trainer, RunDirectory& directory, const Dataset* held_back,
               const std::function<GoOn(const StepResult&)>& after_step);

}  // namespace ssm
