// Everything that decides what a run computes, as one field list: the flags of `ssm train`, and what a checkpoint's
// trainer.json records so that the run can go on.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/files.h"
#include "train/schedule.h"

namespace ssm {

struct OptimizerConfig {
  double weight_decay = 0.1;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double clip = 1.0;  // of the global gradient norm; 0: off

  Fields fields();
  void check() const;
};

// --cuda-graph, of all who train: auto or off (train/gpu_steps.h).
Field cuda_graph_field(std::string* choice);
void check_cuda_graph(const std::string& choice);  // throws Error naming the flag

struct TrainConfig {
  std::string preset, config, init;  // where the model comes from: one of them
  std::vector<std::string> data;
  std::string batches;
  std::string tokenizer;
  int64_t batch = 16, length = 256;
  int64_t accumulate = 1;
  bool recompute = false;
  std::string cuda_graph = "auto";
  ScheduleConfig rate;
  OptimizerConfig optimizer;
  double validation = 0.1;
  std::vector<std::string> eval_data;
  int64_t eval_every = 200, eval_tokens = 65536;
  int64_t save_every = 200, keep = 2;

  Fields fields();
  void check() const;  // throws Error naming the flag
};

// The settings of a run that goes on: those recorded, with those of `asked` that are named in `given`. Only what does
// not change the steps already made may differ (the total, what is evaluated and saved, where the data lies); another
// difference throws Error naming the flag and both values. Paths are compared as absolute ones.
TrainConfig resumed_config(const TrainConfig& recorded, const TrainConfig& asked, const std::set<std::string>& given,
                           const Path& run);

// The same file from any working directory; "" stays "".
std::string absolute_path(const std::string& path);
// Every path made absolute: what a checkpoint records.
void make_paths_absolute(TrainConfig& config);

}  // namespace ssm
