#include "tokenizers/dna.h"

#include "core/error.h"

namespace ssm {
namespace {

constexpr std::string_view kBases = "ACGTN";

std::string shown(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte > 0x20 && byte < 0x7F ? "'" + std::string(1, c) + "'" : text("byte ", static_cast<int>(byte));
}

}  // namespace

std::vector<int64_t> DnaTokenizer::encode(std::string_view text) const {
  std::vector<int64_t> ids;
  ids.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == ' ' || (c >= '\t' && c <= '\r')) continue;
    const size_t base = kBases.find(c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c);
    require(base != kBases.npos, shown(c), " at byte ", i, " is no base; the tokenizer dna takes A, C, G, T and N");
    ids.push_back(static_cast<int64_t>(base));
  }
  return ids;
}

std::string DnaTokenizer::bytes_of(int64_t id) const {
  require(id >= 0 && id < vocab(), "id ", id, " is no base: the tokenizer dna has ids 0 to 4");
  return {kBases[static_cast<size_t>(id)]};
}

}  // namespace ssm
