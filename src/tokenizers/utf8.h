// UTF-8 at the level of code points, for text that is known to be well formed (well_formed makes it so).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ssm {

// `text` itself if it is valid UTF-8, else `storage`, filled with the text in which each maximal subpart of an
// ill-formed sequence became U+FFFD (as Utf8Stream does).
std::string_view well_formed(std::string_view text, std::string& storage);

// The code point that begins at `at` of valid UTF-8, which must not be the end; `at` moves behind it.
inline char32_t next_point(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) {
    at += 1;
    return lead;
  }
  char32_t point;
  if (lead < 0xE0) {
    point = (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    at += 2;
  } else if (lead < 0xF0) {
    point = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    at += 3;
  } else {
    point = (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
    at += 4;
  }
  return point;
}

inline bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Where the character before `at` begins; `at` must not be 0.
inline size_t previous_start(std::string_view text, size_t at) {
  do --at;
  while (continues_character(text[at]));
  return at;
}

inline char32_t point_at(std::string_view text, size_t at) { return next_point(text, at); }

void append_utf8(std::string& text, char32_t point);

// The only character of `text`; false if it has none or more.
bool single_character(std::string_view text, char32_t& point);

}  // namespace ssm
