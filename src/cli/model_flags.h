// What the commands that run a model share: opening what --model names, and checks before a run.
#pragma once

#include "cli/command.h"
#include "core/files.h"
#include "models/model.h"

namespace ssm::cli {

// For inference: --dtype auto leaves weights as stored, except on ref.
ModelOptions model_options(const CommonOptions& common);

// Throws Error unless a file can be made here: said before a long run, not after it.
void require_can_write(const Path& file);

// Calls an options struct's check(), whose messages begin with a field's name: here that was a flag, and what is wrong
// with it is a usage error.
template <class Options>
void check_flags(const Options& options) {
  try {
    options.check();
  } catch (const Error& problem) {
    const std::string what = problem.what(), field = what.substr(0, what.find(' '));
    throw UsageError(flag_of(field), what.substr(field.size()));
  }
}

}  // namespace ssm::cli
