// Every setting of `ssm task` as one field list, and what the papers say where a setting is left out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/model_config.h"
#include "task/generators.h"
#include "train/train_config.h"

namespace ssm {

struct TaskConfig {
  std::string task, mixer = "mamba";
  std::string ssm_cfg;                                             // JSON over the mixer's settings
  std::string positions = "rope";                                  // of attention
  int64_t d_model = 0, layers = 2, heads = 8, d_intermediate = 0;  // 0 here and below: the paper's
  int64_t vocab = 0, length = 0, memory = 0, triggers = 1;
  std::string answers = "last";  // induction-heads: positions with a loss
  int64_t batch = 0, curriculum = 0, shortest = 64;
  ScheduleConfig rate{.steps = 0, .lr = 0, .warmup = 0};
  OptimizerConfig optimizer{.weight_decay = 0, .beta2 = 0.999};
  std::string cuda_graph = "auto";
  double minutes = 0;  // 0: no limit
  int64_t eval_every = 0, eval_length = 0, eval_sequences = 256;
  int64_t stop_after = 0;  // perfect evaluations in a row; 0: never
  std::vector<int64_t> test_lengths;
  int64_t test_tokens = int64_t{1} << 26;  // of one test length

  Fields fields();
  // The paper's settings where none is given; throws Error, opened by a field's name, on what makes no sense.
  void settle();
  TaskShape shape(int64_t of_length) const;
  ModelConfig model() const;
};

TaskKind task_kind(std::string_view name);  // throws Error with the known names

}  // namespace ssm
