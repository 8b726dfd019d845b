// The tokenizer of a model (models/model.h says where it is looked for).
#pragma once

#include <memory>

#include "core/files.h"
#include "models/model_config.h"
#include "tokenizers/tokenizer.h"

namespace ssm {

// Throws Error when the model has none, or one that this version cannot read.
std::unique_ptr<Tokenizer> model_tokenizer(const Path& model, const ModelConfig& config);
// Null instead, for those who can do with ids alone.
std::unique_ptr<Tokenizer> model_tokenizer_if_any(const Path& model, const ModelConfig& config);

}  // namespace ssm
