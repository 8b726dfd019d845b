#include "tokenizers/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "tokenizers/utf8.h"

namespace ssm {
namespace {

struct Alphabet {
  std::array<std::array<char, 2>, 256> encoded{};
  std::array<uint8_t, 256> lengths{};
  std::array<int16_t, 0x144> byte_of{};

  Alphabet() {
    byte_of.fill(-1);
    char32_t other = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t point = printable ? byte : other++;
      byte_of[point] = static_cast<int16_t>(byte);
      std::string bytes;
      append_utf8(bytes, point);
      lengths[byte] = static_cast<uint8_t>(bytes.size());
      for (size_t i = 0; i < bytes.size(); ++i) encoded[byte][i] = bytes[i];
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

void append_in_byte_alphabet(std::string& out, std::string_view bytes) {
  const Alphabet& table = alphabet();
  size_t end = out.size();
  out.resize(end + 2 * bytes.size());
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    out[end] = table.encoded[byte][0];
    out[end + 1] = table.encoded[byte][1];  // overwritten when the character has one byte
    end += table.lengths[byte];
  }
  out.resize(end);
}

void append_from_byte_alphabet(std::string& out, std::string_view text) {
  const Alphabet& table = alphabet();
  const size_t before = out.size();
  for (size_t at = 0; at < text.size();) {
    const char32_t point = next_point(text, at);
    if (point >= table.byte_of.size() || table.byte_of[point] < 0) {
      out.resize(before);
      out += text;
      return;
    }
    out += static_cast<char>(static_cast<unsigned char>(table.byte_of[point]));
  }
}

}  // namespace ssm
