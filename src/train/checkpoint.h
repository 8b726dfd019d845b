// What a checkpoint of a run holds: a MODEL (config.json, model.safetensors), the optimizer's moments
// (optimizer.safetensors) and trainer.json. The data and all randomness are functions of the seed and the step, so
// they need no state of their own.
#pragma once

#include <cstdint>
#include <string>

#include "core/files.h"
#include "models/model.h"
#include "train/optimizer.h"
#include "train/train_config.h"

namespace ssm {

struct TrainingState {
  int64_t step = 0;    // updates made
  int64_t tokens = 0;  // trained on, in all of them
  int64_t seed = 0;
  std::string dtype = "f32";
  // Tokens of the data set; a resumed run must find as many. 0: prescribed batches.
  int64_t data_tokens = 0;
  std::string tokenizer_json;  // contents of the model's tokenizer.json; "" if it has none
  TrainConfig config;          // paths are absolute
};

// Fills an existing directory; RunDirectory::save makes it appear whole.
void write_training_checkpoint(const Path& directory, const Model& model, const Optimizer& optimizer,
                               const TrainingState& state);

// The state in a checkpoint; throws Error if it cannot be this program's. The model is opened with Model::open, the
// moments with load_optimizer.
TrainingState read_training_state(const Path& directory);
void load_optimizer(const Path& directory, Optimizer& optimizer);

}  // namespace ssm
