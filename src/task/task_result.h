// The JSON of a run: what `ssm task --json` prints, result.json holds, and a checkpoint keeps of the run so far.
// README.md has the schema.
#pragma once

#include <string>

#include "core/files.h"
#include "task/task_run.h"

namespace ssm {

struct TaskRecord {
  TaskConfig config;  // settled
  uint64_t seed = 0;
  std::string dtype;
  TaskResult result;
};

std::string task_result_json(const TaskRecord& record, int indent = 2);  // without a line end
// Throws Error naming the file where it cannot be such a result.
TaskRecord read_task_result(const Path& path);

}  // namespace ssm
