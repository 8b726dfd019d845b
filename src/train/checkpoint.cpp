// trainer.json is one more field list.
#include "train/checkpoint.h"

#include "core/config.h"
#include "core/error.h"

namespace ssm {
namespace {

constexpr int64_t kVersion = 1;
constexpr const char *kTrainer = "trainer.json", *kOptimizer = "optimizer.safetensors", *kTokenizer = "tokenizer.json";

struct TrainerFile {
  int64_t version = kVersion;
  TrainingState state;

  Fields fields() {
    return {{.name = "version", .target = &version, .help = "of this file's format", .required = true},
            {.name = "step", .target = &state.step, .help = "updates made", .required = true},
            {.name = "tokens", .target = &state.tokens, .help = "trained on", .required = true},
            {.name = "seed", .target = &state.seed, .help = "of the run", .required = true},
            {.name = "dtype", .target = &state.dtype, .help = "of weights and moments", .required = true},
            {.name = "data_tokens", .target = &state.data_tokens, .help = "in the data set", .required = true},
            {.name = "settings",
             .target = Field::Nested([this] { return state.config.fields(); }),
             .help = "flags of ssm train",
             .required = true}};
  }
};

}  // namespace

void write_training_checkpoint(const Path& directory, const Model& model, const Optimizer& optimizer,
                               const TrainingState& state) {
  model.save(directory);
  if (!state.tokenizer_json.empty()) write_file(directory / kTokenizer, state.tokenizer_json);
  write_safetensors(directory / kOptimizer, optimizer.tensors());
  TrainerFile file{.state = state};
  write_file(directory / kTrainer, write_json(file.fields()) + "\n");
}

TrainingState read_training_state(const Path& directory) {
  const Path path = directory / kTrainer;
  const std::string where = path.string(), json = read_text(path);
  // The version first: another one may have other keys.
  TrainerFile file;
  read_json({{.name = "version", .target = &file.version, .help = "of this file's format", .required = true}}, json,
            where, UnknownKeys::are_skipped);
  require(file.version == kVersion, where, ": version ", file.version, ", this program reads version ", kVersion);
  read_json(file.fields(), json, where);
  TrainingState& state = file.state;
  require(state.step >= 0 && state.tokens >= 0 && state.data_tokens >= 0, where,
          ": step, tokens and data_tokens cannot be negative");
  require(directory.filename() == text("step-", state.step), where, " says step ", state.step,
          ", its directory is called ", directory.filename().string());
  try {
    state.config.check();
  } catch (const Error& problem) {
    throw Error(where, ": ", problem.what());
  }
  if (std::filesystem::exists(directory / kTokenizer)) state.tokenizer_json = read_text(directory / kTokenizer);
  return state;
}

void load_optimizer(const Path& directory, Optimizer& optimizer) {
  const Path path = directory / kOptimizer;
  optimizer.load(read_safetensors(path), path.string());
}

}  // namespace ssm
