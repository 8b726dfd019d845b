#include "engine/model_tokenizer.h"

#include "core/error.h"
#include "models/model.h"

namespace ssm {
namespace {

std::unique_ptr<Tokenizer> open_fitting(const std::string& spec, const Path& model, const ModelConfig& config) {
  std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(spec);
  const int64_t rows = config.padded_vocab();
  require(tokenizer->vocab() <= rows, "the tokenizer ", spec, " has ids up to ", tokenizer->vocab() - 1, ", ",
          tokenizer->vocab(), " in all, but the model ", model.string(), " has a vocabulary of ", rows,
          "; expected the tokenizer that the model was trained with");
  return tokenizer;
}

}  // namespace

std::unique_ptr<Tokenizer> model_tokenizer(const Path& model, const ModelConfig& config, const std::string& spec) {
  const std::string found = spec.empty() ? tokenizer_of(model, config) : spec;
  require(!found.empty(), model.string(), " has no tokenizer.json or tokenizer.model and a vocabulary of ",
          config.vocab_size, ", which is not that of bytes (256); name a tokenizer (--tokenizer PATH), or give ids ",
          "instead of text");
  return open_fitting(found, model, config);
}

std::unique_ptr<Tokenizer> model_tokenizer_if_any(const Path& model, const ModelConfig& config, const std::string& spec,
                                                  std::string* problem) {
  if (!spec.empty()) return open_fitting(spec, model, config);
  const std::string found = tokenizer_of(model, config);
  if (found.empty()) return nullptr;
  try {
    return open_fitting(found, model, config);
  } catch (const Error& error) {
    if (problem) *problem = error.what();
    return nullptr;
  }
}

std::vector<int64_t> end_ids(const ModelConfig& config, const Tokenizer* tokenizer) {
  if (!config.eos_token_id.empty()) return config.eos_token_id;
  const auto end = tokenizer ? tokenizer->end_of_text() : std::nullopt;
  return end ? std::vector{*end} : std::vector<int64_t>{};
}

}  // namespace ssm
