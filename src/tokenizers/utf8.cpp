#include "tokenizers/utf8.h"

#include <cstring>

#include "tokenizers/utf8_stream.h"

namespace ssm {
namespace {

// Bytes of the character at the front of `text`, 0 if none begins there (table 3-7 of The Unicode Standard).
size_t valid_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto between = [&](size_t i, int low, int high) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return between(1, 0x80, 0xBF) ? 2 : 0;
  if (lead < 0xF0)
    return between(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF) && between(2, 0x80, 0xBF) ? 3 : 0;
  if (lead > 0xF4) return 0;
  return between(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF) && between(2, 0x80, 0xBF) &&
                 between(3, 0x80, 0xBF)
             ? 4
             : 0;
}

size_t valid_length(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight = 0x80;  // of ASCII at once
    if (at + 8 <= text.size()) std::memcpy(&eight, text.data() + at, 8);
    if ((eight & 0x8080808080808080) == 0) {
      at += 8;
      continue;
    }
    const size_t length = valid_character(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

}  // namespace

std::string_view well_formed(std::string_view text, std::string& storage) {
  if (valid_length(text) == text.size()) return text;
  Utf8Stream stream;
  storage = stream.push(text);
  storage += stream.finish();
  return storage;
}

void append_utf8(std::string& text, char32_t point) {
  const auto push = [&](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
  if (point < 0x80) {
    push(point);
  } else if (point < 0x800) {
    push(0xC0 | point >> 6);
    push(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    push(0xE0 | point >> 12);
    push(0x80 | (point >> 6 & 0x3F));
    push(0x80 | (point & 0x3F));
  } else {
    push(0xF0 | point >> 18);
    push(0x80 | (point >> 12 & 0x3F));
    push(0x80 | (point >> 6 & 0x3F));
    push(0x80 | (point & 0x3F));
  }
}

bool single_character(std::string_view text, char32_t& point) {
  if (text.empty()) return false;
  size_t at = 0;
  point = next_point(text, at);
  return at == text.size();
}

}  // namespace ssm
