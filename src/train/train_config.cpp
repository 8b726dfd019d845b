// The fields, their limits, and which of them may change when a run goes on.
#include "train/train_config.h"

#include <cmath>

#include "core/error.h"
#include "models/model_config.h"

namespace ssm {
namespace {

std::string flag_of(std::string name) {
  for (char& c : name)
    if (c == '_') c = '-';
  return "--" + name;
}

void within(const char* flag, int64_t value, int64_t low, int64_t high) {
  require(low <= value && value <= high, flag, " ", value, ": expected ", low, " to ", high);
}

void append(Fields& to, Fields more) {
  for (Field& field : more) to.push_back(std::move(field));
}

// A field's value as it would stand in JSON, without the braces and the name.
std::string shown(const Field& field) {
  const std::string object = write_json({field}, 0);
  const size_t colon = object.find(':');
  return object.substr(colon + 1, object.size() - colon - 2);
}

}  // namespace

Fields OptimizerConfig::fields() {
  return {{"weight_decay", &weight_decay, "AdamW's, on matrices only (not on norms, biases, A_log and D)"},
          {"beta1", &beta1, "decay of the gradient's mean"},
          {"beta2", &beta2, "decay of the squared gradient's mean"},
          {"eps", &eps, "added to the root of the squared gradient's mean"},
          {"clip", &clip, "largest global gradient norm; 0: do not clip"}};
}

void OptimizerConfig::check() const {
  const auto is_beta = [](double value) { return value >= 0 && value < 1; };
  require(std::isfinite(weight_decay) && weight_decay >= 0, "--weight-decay ", weight_decay, ": expected at least 0");
  require(is_beta(beta1), "--beta1 ", beta1, ": expected at least 0 and less than 1");
  require(is_beta(beta2), "--beta2 ", beta2, ": expected at least 0 and less than 1");
  require(std::isfinite(eps) && eps > 0, "--eps ", eps, ": expected more than 0");
  require(std::isfinite(clip) && clip >= 0, "--clip ", clip, ": expected at least 0");
}

Field cuda_graph_field(std::string* choice) {
  return {"cuda_graph", choice, "on a GPU: auto replays forward and backward of a shape of batch as a graph; or off"};
}

void check_cuda_graph(const std::string& choice) {
  require(choice == "auto" || choice == "off", "--cuda-graph ", choice, ": expected auto or off");
}

Fields TrainConfig::fields() {
  std::string sizes;
  for (const Preset& one : presets()) sizes += (sizes.empty() ? "" : ", ") + one.name;
  Fields all = {
      {"preset", &preset, "start a new model of this size: " + sizes},
      {"config", &config, "start a new model as this config.json says"},
      {"init", &init, "start from the weights of this MODEL"},
      {"data", &data, "text files, or token files made by ssm tokenize"},
      {"batches", &batches, ".npy of integers (steps, batch, length + 1): train on exactly these, in order"},
      {"tokenizer", &tokenizer, "bytes, or a path; default: the model's own"},
      {"batch", &batch, "sequences in a batch"},
      {"length", &length, "tokens in a sequence"},
      {"accumulate", &accumulate, "batches in a step: the same step as one of a batch so many times as large"},
      {"recompute", &recompute,
       "keep only the inputs of each block for the backward, and run the blocks again there: less memory, slower"},
      cuda_graph_field(&cuda_graph)};
  append(all, rate.fields());
  append(all, optimizer.fields());
  append(all, {{"validation", &validation, "part of the data, from its end, that is held back for evaluation"},
               {"eval_data", &eval_data, "evaluate on these files; nothing is held back then"},
               {"eval_every", &eval_every, "steps between evaluations; 0: never"},
               {"eval_tokens", &eval_tokens, "evaluate on so many tokens at most; 0: all"},
               {"save_every", &save_every, "steps between checkpoints (one more at the end); 0: only then"},
               {"keep", &keep, "newest checkpoints to keep; 0: all"}});
  return all;
}

void TrainConfig::check() const {
  constexpr int64_t kMostTokens = int64_t{1} << 28;  // in a batch: token numbers and memory stay far from overflow
  within("--batch", batch, 1, kMostTokens);
  within("--length", length, 1, kMostTokens);
  require(batch * length <= kMostTokens, "--batch ", batch, " with --length ", length, " is ", batch * length,
          " tokens, expected at most ", kMostTokens, "; use --accumulate for larger steps");
  within("--accumulate", accumulate, 1, int64_t{1} << 20);
  check_cuda_graph(cuda_graph);
  rate.check();
  optimizer.check();
  require(validation >= 0 && validation < 1, "--validation ", validation, ": expected at least 0 and less than 1");
  within("--eval-every", eval_every, 0, INT64_MAX);
  within("--eval-tokens", eval_tokens, 0, INT64_MAX);
  require(eval_tokens != 1,
          "--eval-tokens 1: expected at least 2 (the first token has nothing before it), or 0 for all");
  within("--save-every", save_every, 0, INT64_MAX);
  within("--keep", keep, 0, INT64_MAX);
}

TrainConfig resumed_config(const TrainConfig& recorded, const TrainConfig& asked, const std::set<std::string>& given,
                           const Path& run) {
  static const std::set<std::string> free = {"steps",     "data",       "batches",     "tokenizer",
                                             "eval_data", "eval_every", "eval_tokens", "save_every",
                                             "keep",      "recompute",  "cuda_graph"};
  TrainConfig result = recorded, old = recorded, now = asked;
  make_paths_absolute(old);
  make_paths_absolute(now);
  const Fields to = result.fields(), before = old.fields(), wanted = now.fields();
  for (size_t i = 0; i < to.size(); ++i) {
    const std::string& name = to[i].name;
    if (!given.contains(name)) continue;
    require(free.contains(name) || shown(before[i]) == shown(wanted[i]), flag_of(name), " is ", shown(wanted[i]),
            ", the run in ", run.string(), " has ", shown(before[i]),
            "; leave the flag out to go on as the run began, or start a new run with --init ", run.string(),
            " and another --out");
    read_json({to[i]}, write_json({wanted[i]}), flag_of(name));
  }
  return result;
}

std::string absolute_path(const std::string& path) {
  return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

void make_paths_absolute(TrainConfig& config) {
  for (std::string* path : {&config.config, &config.init, &config.batches}) *path = absolute_path(*path);
  for (std::string& path : config.data) path = absolute_path(path);
  for (std::string& path : config.eval_data) path = absolute_path(path);
  std::error_code ignored;  // "bytes" is no path
  if (std::filesystem::exists(config.tokenizer, ignored)) config.tokenizer = absolute_path(config.tokenizer);
}

}  // namespace ssm
