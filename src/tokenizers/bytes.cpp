// One id a byte, both ways.
#include "tokenizers/bytes.h"

#include "core/error.h"

namespace ssm {

std::vector<int64_t> ByteTokenizer::encode(std::string_view text) const {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  return {bytes, bytes + text.size()};
}

std::string ByteTokenizer::bytes_of(int64_t id) const {
  require(id >= 0 && id < vocab(), "id ", id, " is not a byte: the tokenizer bytes has ids 0 to 255");
  return {static_cast<char>(id)};
}

}  // namespace ssm
