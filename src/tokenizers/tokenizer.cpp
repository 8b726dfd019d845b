// What all tokenizers share, and the choice among them.
#include "tokenizers/tokenizer.h"

#include <filesystem>

#include "core/error.h"
#include "tokenizers/bytes.h"

namespace ssm {

std::string Tokenizer::decode(std::span<const int64_t> ids) const {
  std::string bytes;
  for (const int64_t id : ids) bytes += bytes_of(id);
  return bytes;
}

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& spec) {
  if (spec == "bytes") return std::make_unique<ByteTokenizer>();
  std::error_code ignored;  // a path that cannot be looked at is reported as unknown
  require(!std::filesystem::exists(spec, ignored), "tokenizer ", spec,
          ": tokenizer files (byte-level BPE) are not part of this version; use the tokenizer bytes, or give ids "
          "instead of text (--ids)");
  throw Error("unknown tokenizer '", spec, "': there is no such file, and the built-in tokenizer is called bytes");
}

}  // namespace ssm
