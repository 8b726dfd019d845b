// `ssm task --all`: the runs of task/task_runs.h as processes of their own, and the tables of what they found.
//
//   DIR/NAME/         a run as `ssm task --out DIR/NAME` makes it: checkpoints, then result.json
//   DIR/NAME/failure.txt, stderr.txt    why it has none; what it said
//   DIR/tables.md, tables.json, *.svg   made anew after each run
//
// A run whose result is there is not made again, and one that was interrupted goes on, so the same command line goes on
// with the whole.
#pragma once

#include <cstdint>
#include <string>

#include "cli/command.h"

namespace ssm::cli {

struct AllTasks {
  std::string out, recipe = "fast", only;
  int64_t seeds = 0, jobs = 1;
  bool list = false;
};

// `given`: settings over those of the recipe, a JSON object. The exit code.
int run_all_tasks(const AllTasks& asked, const Invocation& invocation, const std::string& given);

}  // namespace ssm::cli
