// One run of a task: training on fresh data, evaluations on the way, the test at the end; checkpoints to go on from.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "task/accuracy.h"
#include "task/task_config.h"
#include "train/run_directory.h"
#include "train/trainer.h"

namespace ssm {

struct TaskEvaluation {
  int64_t step = 0;
  double loss = 0;     // of that step's batch
  double seconds = 0;  // since the run began
  Accuracy accuracy;
};

struct TaskTest {
  int64_t length = 0;
  Accuracy accuracy;
  double seconds = 0;
  std::string failure;  // why there is no accuracy: out of memory; "" if there is one
};

struct TaskResult {
  std::vector<TaskEvaluation> evaluations;
  std::vector<TaskTest> tests;
  int64_t steps = 0, parameters = 0;
  double train_seconds = 0, seconds = 0;  // without and with evaluations and the test
  std::string ended;                      // steps, minutes, solved or interrupted
  int64_t perfect_in_a_row = 0;           // evaluations, so far
  std::string why_not_recorded;           // of the steps on a GPU, as Trainer says
};

struct TaskObserver {
  std::function<void(const StepResult&)> step = [](const StepResult&) {};
  std::function<void(const TaskEvaluation&)> evaluated = [](const TaskEvaluation&) {};
  std::function<void(const TaskTest&)> tested = [](const TaskTest&) {};
  std::function<bool()> go_on = [] { return true; };  // false: stop after this step or call
};

// `config` is settled; `model` is of config.model() and trainable. An interrupted run keeps what it has.
//
// With a directory there is a checkpoint at every evaluation and at the end of training, interrupted or not, with the
// result so far in it (kResultSoFar). Where it has one already the run goes on from it: `model` is the checkpoint's.
TaskResult run_task(Model& model, const TaskConfig& config, uint64_t seed, Threads& threads,
                    const TaskObserver& observer, RunDirectory* directory = nullptr);

inline constexpr const char* kResultSoFar = "result.json";  // in a checkpoint; task/task_result.h has the format

}  // namespace ssm
