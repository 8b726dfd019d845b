#include "cli/model_flags.h"

namespace ssm::cli {
namespace {

constexpr std::string_view kBytes = "bytes";  // the tokenizer this version can read

}  // namespace

ModelOptions model_options(const CommonOptions& common) {
  return {.device = common.device_kind(), .dtype = common.dtype_kind()};
}

std::unique_ptr<Tokenizer> text_tokenizer(const Path& model, const ModelConfig& config) {
  const std::string spec = tokenizer_of(model, config);
  require(!spec.empty(), model.string(), " has no tokenizer.json and a vocabulary of ", config.vocab_size,
          ", which is not that of bytes (256); give ids instead of text");
  return open_tokenizer(spec);
}

std::unique_ptr<Tokenizer> text_tokenizer_if_any(const Path& model, const ModelConfig& config) {
  return tokenizer_of(model, config) == kBytes ? open_tokenizer(std::string(kBytes)) : nullptr;
}

DType stored_dtype(const Checkpoint& checkpoint) {
  const auto embedding = checkpoint.tensors.find("backbone.embedding.weight");
  const DType dtype = embedding == checkpoint.tensors.end() ? DType::f32 : embedding->second.dtype();
  return dtype == DType::bf16 || dtype == DType::f16 ? dtype : DType::f32;
}

void require_can_write(const Path& file) { const FileWriter probe(file); }

}  // namespace ssm::cli
