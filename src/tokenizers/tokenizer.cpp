// What all tokenizers share, and the choice among them.
#include "tokenizers/tokenizer.h"

#include <filesystem>

#include "core/error.h"
#include "core/files.h"
#include "tokenizers/bytes.h"
#include "tokenizers/dna.h"
#include "tokenizers/sentencepiece.h"
#include "tokenizers/tokenizer_json.h"

namespace ssm {

std::string Tokenizer::decode(std::span<const int64_t> ids) const {
  std::string bytes;
  for (const int64_t id : ids) bytes += bytes_of(id);
  return bytes;
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& spec) {
  if (spec == "bytes") return std::make_unique<ByteTokenizer>();
  if (spec == "dna") return std::make_unique<DnaTokenizer>();
  std::error_code ignored;  // a path that cannot be looked at is reported as unknown
  Path path = spec;
  if (std::filesystem::is_directory(path, ignored)) {
    path /= "tokenizer.json";
    if (!std::filesystem::exists(path, ignored)) path.replace_filename("tokenizer.model");
    require(std::filesystem::exists(path, ignored), "the directory ", spec,
            " has no tokenizer.json and no tokenizer.model");
  }
  require(std::filesystem::exists(path, ignored), "unknown tokenizer '", spec,
          "': there is no such file, and the built-in tokenizers are called bytes and dna");
  return path.extension() == ".model" ? open_sentencepiece(path) : open_tokenizer_json(path);
}

}  // namespace ssm
