// What the commands that run a model share: opening what --model names, and its tokenizer.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "core/files.h"
#include "formats/checkpoint.h"
#include "models/model.h"
#include "tokenizers/tokenizer.h"

namespace ssm::cli {

ModelOptions model_options(const CommonOptions& common);

// The model's tokenizer; throws Error when it has none, or one that this version cannot read.
std::unique_ptr<Tokenizer> text_tokenizer(const Path& model, const ModelConfig& config);
// The same for commands that can do with ids alone: null instead.
std::unique_ptr<Tokenizer> text_tokenizer_if_any(const Path& model, const ModelConfig& config);

// The dtype that opens a checkpoint without converting it: its embedding's, or f32.
DType stored_dtype(const Checkpoint& checkpoint);

// Throws Error unless a file can be made here. Before a long run, so that it does not end without its result.
void require_can_write(const Path& file);

// Calls an options struct's check(): what it finds wrong was set by a flag, so it is a usage error.
template <class Options>
void check_flags(const Options& options) {
  try {
    options.check();
  } catch (const Error& problem) {
    throw UsageError(problem.what());
  }
}

}  // namespace ssm::cli
