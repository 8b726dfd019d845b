// What `ssm task --all` found, as tables beside the published numbers: Markdown, JSON and charts. Made from whatever
// results are there; of a run that is missing, unfinished or failed its cells say so.
#pragma once

#include <string>
#include <vector>

#include "core/files.h"
#include "task/task_runs.h"

namespace ssm {

inline constexpr const char* kResult = "result.json";   // in a run's directory, once it is over
inline constexpr const char* kFailure = "failure.txt";  // why it ended without one

// Reads DIR/NAME/ of all `runs`, writes tables.md, tables.json, copying.svg, induction.svg, selection.svg and mqar.svg
// into DIR and returns the Markdown. A chart without a single value is not written.
std::string write_task_tables(const Path& directory, const std::vector<TaskRun>& runs);

}  // namespace ssm
