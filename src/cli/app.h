// From the words of a command line to a command that runs: flags made of fields, help, version, usage errors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"

namespace ssm::cli {

using Commands = std::vector<std::unique_ptr<Command>>;

// Runs the command that `words` (argv without the program's name) ask for and returns its exit code. Throws UsageError
// on what cannot be meant, and whatever the command throws.
int run_app(const Commands& commands, const std::vector<std::string>& words);

// What `ssm COMMAND --help` prints.
std::string help_of(Command& command);

}  // namespace ssm::cli
