// Character classes from run lengths; normal forms by utf8proc, in runs between characters that no form touches.
#include "tokenizers/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "core/error.h"
#include "tokenizers/unicode_tables.h"
#include "tokenizers/utf8.h"

namespace ssm {
namespace {

const std::unordered_map<char32_t, char32_t>& lower_map() {
  static const auto* map = [] {
    auto* result = new std::unordered_map<char32_t, char32_t>;
    for (size_t i = 0; i < kLowerRunCount; ++i) {
      const LowerRun& run = kLowerRuns[i];
      for (uint32_t point = run.first; point <= run.last; point += run.step)
        result->emplace(point, static_cast<char32_t>(static_cast<int32_t>(point) + run.delta));
    }
    return result;
  }();
  return *map;
}

utf8proc_option_t options_of(NormalForm form) {
  const bool composed = form == NormalForm::nfc || form == NormalForm::nfkc;
  const bool compatible = form == NormalForm::nfkc || form == NormalForm::nfkd;
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                        (compatible ? UTF8PROC_COMPAT : 0));
}

// Appends the normal form of `run`; `points` is scratch space.
void append_normalised(std::string& out, std::string_view run, utf8proc_option_t options,
                       std::vector<utf8proc_int32_t>& points) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(run.data());
  const auto length = static_cast<utf8proc_ssize_t>(run.size());
  const auto decompose = [&] {
    return utf8proc_decompose(bytes, length, points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
  };
  if (points.size() < run.size() + 32) points.resize(run.size() + 32);  // most runs grow by little
  utf8proc_ssize_t count = decompose();
  if (count > static_cast<utf8proc_ssize_t>(points.size())) {
    points.resize(static_cast<size_t>(count));
    count = decompose();
  }
  if (count >= 0) count = utf8proc_normalize_utf32(points.data(), count, options);
  require(count >= 0, "normalising text: ", utf8proc_errmsg(count));
  for (utf8proc_ssize_t i = 0; i < count; ++i) append_utf8(out, static_cast<char32_t>(points[static_cast<size_t>(i)]));
}

}  // namespace

CharacterTable::CharacterTable() {
  std::map<std::array<uint16_t, 256>, uint16_t> known;
  std::array<uint16_t, 256> block{};
  size_t point = 0;
  for (size_t run = 0; run < kUnicodeRunCount; ++run) {
    const auto bits = static_cast<uint16_t>(kUnicodeRuns[run] & 511);
    for (uint32_t left = kUnicodeRuns[run] >> 9; left > 0; --left) {
      block[point & 255] = bits;
      if ((++point & 255) != 0) continue;
      const auto [found, fresh] = known.emplace(block, static_cast<uint16_t>(blocks_.size()));
      if (fresh) blocks_.push_back(block);
      block_of_[point / 256 - 1] = found->second;
    }
  }
}

const CharacterTable& character_table() {
  static const CharacterTable table;
  return table;
}

void append_lower(std::string& text, char32_t point) {
  if (point < 0x80) {
    text += static_cast<char>(point >= 'A' && point <= 'Z' ? point + 32 : point);
    return;
  }
  if (point == 0x130) {  // the only letter whose lower case has two code points
    text += "i\xCC\x87";
    return;
  }
  const auto found = lower_map().find(point);
  append_utf8(text, found == lower_map().end() ? point : found->second);
}

std::string normalise(std::string_view text, NormalForm form) {
  const CharacterTable& classes = character_table();
  const utf8proc_option_t options = options_of(form);
  const bool composed = form == NormalForm::nfc || form == NormalForm::nfkc;
  // Below U+0080, and for NFC below U+0300, a character changes only together with a later one above.
  const unsigned char first_active = form == NormalForm::nfc ? 0xCC : 0x80;
  std::string out;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> points;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < first_active || continues_character(text[at])) {
      ++at;
      continue;
    }
    size_t end = at;
    if (classes(next_point(text, end)) & kInert) {
      at = end;
      continue;
    }
    // A run of characters that are not inert, with the one before it that it may join.
    size_t begin = at;
    if (composed)
      while (begin > done) {
        const size_t before = previous_start(text, begin);
        if (classes(point_at(text, before)) & kInert) break;
        begin = before;
        if (static_cast<unsigned char>(text[before]) < first_active) break;
      }
    while (end < text.size()) {
      size_t next = end;
      if (classes(next_point(text, next)) & kInert) break;
      // ASCII begins a run of its own: nothing joins it from the left.
      if (static_cast<unsigned char>(text[end]) < 0x80) break;
      end = next;
    }
    out += text.substr(done, begin - done);
    append_normalised(out, text.substr(begin, end - begin), options, points);
    done = at = end;
  }
  out += text.substr(done);
  return out;
}

}  // namespace ssm
