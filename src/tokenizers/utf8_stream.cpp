// The well-formed sequences of table 3-7 of The Unicode Standard, read one character at a time.
#include "tokenizers/utf8_stream.h"

#include <algorithm>
#include <cstdint>

namespace ssm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Lead {
  size_t length;              // bytes of the character; 0: no character begins with this byte
  unsigned char least, most;  // what its second byte may be
};

// The narrowed second bytes keep out overlong forms (E0, F0), surrogates (ED) and what lies past U+10FFFF (F4).
Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte < 0xF0)
    return {3, byte == 0xE0 ? uint8_t{0xA0} : uint8_t{0x80}, byte == 0xED ? uint8_t{0x9F} : uint8_t{0xBF}};
  if (byte < 0xF5)
    return {4, byte == 0xF0 ? uint8_t{0x90} : uint8_t{0x80}, byte == 0xF4 ? uint8_t{0x8F} : uint8_t{0xBF}};
  return {0, 0, 0};
}

// How many bytes at the front of `text`, whose first byte is `lead`, can belong to one character; at least 1.
size_t subpart_length(std::string_view text, const Lead& lead) {
  const size_t end = std::min(lead.length, text.size());
  size_t length = 1;
  unsigned char least = lead.least, most = lead.most;
  while (length < end) {
    const auto byte = static_cast<unsigned char>(text[length]);
    if (byte < least || byte > most) break;
    least = 0x80;
    most = 0xBF;
    ++length;
  }
  return length;
}

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
  const std::string joined = std::move(pending_).append(bytes);
  pending_.clear();
  std::string out;
  out.reserve(joined.size());
  for (size_t at = 0; at < joined.size();) {
    const std::string_view rest = std::string_view(joined).substr(at);
    const Lead lead = lead_of(static_cast<unsigned char>(rest[0]));
    const size_t length = subpart_length(rest, lead);
    if (length == lead.length)
      out += rest.substr(0, length);
    else if (length == rest.size() && lead.length > 0)
      pending_ = rest;
    else
      out += kReplacement;
    at += length;
  }
  return out;
}

std::string Utf8Stream::finish() {
  std::string out(pending_.empty() ? std::string_view() : kReplacement);
  pending_.clear();
  return out;
}

}  // namespace ssm
