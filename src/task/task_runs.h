// Every run behind the tables of `ssm task --all`, and the recipes by which they are trained. The tables themselves are
// task/task_tables.h's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "task/task_config.h"

namespace ssm {

// quick: every task made short, minutes on a laptop. fast: the papers' tasks with larger rates, fewer steps and a
// curriculum, minutes on a GPU. paper: the published settings, hours.
enum class Recipe { quick, fast, paper };
Recipe recipe_named(std::string_view name);  // throws Error with the known names

struct TaskRun {
  std::string name;  // "copying-mamba-0": what --only matches, and the name of its result without ".json"
  std::string row;   // "copying-mamba": what tables refer to
  int64_t seed = 0;
  std::string settings;  // JSON over TaskConfig's fields, all that the recipe and the row say

  TaskConfig config() const;               // not settled. Throws Error when the list is wrong
  std::vector<std::string> words() const;  // arguments of `ssm task` that make this run alone, without --out
  std::string command() const;             // the same as a line for a shell
};

// In the order in which they are made. `seeds`: of every row; 0: three where the papers' claim is checked, else one.
// `given`: a JSON object of settings over all others.
std::vector<TaskRun> task_runs(Recipe recipe, int64_t seeds = 0, std::string_view given = "{}");
// A shell pattern, found anywhere in the name.
bool matches(std::string_view name, std::string_view pattern);

}  // namespace ssm
