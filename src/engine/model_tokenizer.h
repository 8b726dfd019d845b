// The tokenizer of a model (models/model.h says where it is looked for), or the one that the user names.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/files.h"
#include "models/model_config.h"
#include "tokenizers/tokenizer.h"

namespace ssm {

// `spec` is what open_tokenizer takes; empty: the model's own. Throws Error when there is none, when it cannot be read,
// and when it has more ids than the model has rows for them (fewer is padding).
std::unique_ptr<Tokenizer> model_tokenizer(const Path& model, const ModelConfig& config, const std::string& spec = "");
// For those who can do with ids alone: null when the model has none, and when its own cannot be used, with the reason
// in `problem`. A tokenizer that the user names must work.
std::unique_ptr<Tokenizer> model_tokenizer_if_any(const Path& model, const ModelConfig& config,
                                                  const std::string& spec = "", std::string* problem = nullptr);

// The ids that end a text: the config's, else the tokenizer's (null: none), else none.
std::vector<int64_t> end_ids(const ModelConfig& config, const Tokenizer* tokenizer);

}  // namespace ssm
