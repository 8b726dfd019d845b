#include "engine/model_tokenizer.h"

#include "core/error.h"
#include "models/model.h"

namespace ssm {

std::unique_ptr<Tokenizer> model_tokenizer(const Path& model, const ModelConfig& config) {
  const std::string spec = tokenizer_of(model, config);
  require(!spec.empty(), model.string(), " has no tokenizer.json and a vocabulary of ", config.vocab_size,
          ", which is not that of bytes (256); give ids instead of text");
  return open_tokenizer(spec);
}

std::unique_ptr<Tokenizer> model_tokenizer_if_any(const Path& model, const ModelConfig& config) {
  const std::string spec = tokenizer_of(model, config);
  return spec == "bytes" ? open_tokenizer(spec) : nullptr;  // the only one this version reads
}

}  // namespace ssm
