// The alternatives of each pattern in their order, first match wins.
#include "tokenizers/word_patterns.h"

#include "tokenizers/unicode.h"
#include "tokenizers/utf8.h"

namespace ssm {
namespace {

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Classes of the characters of one text; its end has none.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text), classes_(character_table()) {}

  unsigned classes_at(size_t at) const {
    return at < text_.size() ? classes_(point_at(text_, at)) & (kLetter | kNumber | kSpace) : kEnd;
  }
  size_t after(size_t at) const {
    next_point(text_, at);
    return at;
  }
  // Behind the characters from `at` on that have a class of `mask`; with mask 0, that are none of letter, number,
  // space.
  size_t run(size_t at, unsigned mask) const {
    for (size_t next = at; at < text_.size(); at = next) {
      const unsigned found = classes_(next_point(text_, next)) & (kLetter | kNumber | kSpace);
      if (mask ? (found & mask) == 0 : found != 0) break;
    }
    return at;
  }
  char byte(size_t at) const { return at < text_.size() ? text_[at] : '\0'; }
  bool newline(size_t at) const { return byte(at) == '\n' || byte(at) == '\r'; }

  static constexpr unsigned kEnd = 1u << 31;

 private:
  std::string_view text_;
  const CharacterTable& classes_;
};

// \s+(?!\S)|\s+ at a space: the run of spaces, less its last one when something follows and one remains.
size_t match_spaces(const Reader& reader, std::string_view text, size_t at) {
  const size_t end = reader.run(at, kSpace);
  if (end == text.size()) return end;
  const size_t shorter = previous_start(text, end);
  return shorter > at ? shorter : end;
}

// '(?:s|t|re|ve|m|ll|d) at an apostrophe; 0 if there is none. When case is ignored, the long s is an s too.
size_t match_contraction(const Reader& reader, size_t at, bool ignore_case) {
  const auto lower = [&](size_t i) {
    const char c = reader.byte(i);
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = lower(at + 1), second = lower(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l'))
    return at + 3;
  if (ignore_case && first == '\xC5' && second == '\xBF') return at + 3;
  return 0;
}

template <int kDigits>
size_t match_llama3(std::string_view text, size_t at) {
  const Reader reader(text);
  if (text[at] == '\'')
    if (const size_t end = match_contraction(reader, at, true)) return end;
  const unsigned first = reader.classes_at(at);
  if (first & kLetter) return reader.run(at, kLetter);
  const size_t second_at = reader.after(at);
  if (!(first & kNumber) && !reader.newline(at) && (reader.classes_at(second_at) & kLetter))
    return reader.run(second_at, kLetter);
  if (first & kNumber) {
    size_t end = second_at;
    for (int digits = 1; digits < kDigits && (reader.classes_at(end) & kNumber); ++digits) end = reader.after(end);
    return end;
  }
  if (first == 0 || (text[at] == ' ' && reader.classes_at(second_at) == 0)) {
    size_t end = reader.run(second_at, 0);
    while (reader.newline(end)) ++end;
    return end;
  }
  // \s*[\r\n]+ ends behind the last line end in the run of spaces.
  const size_t end = reader.run(at, kSpace);
  for (size_t back = end; back > at; --back)
    if (reader.newline(back - 1)) return back;
  return match_spaces(reader, text, at);
}

}  // namespace

const std::string_view kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

size_t match_gpt2(std::string_view text, size_t at) {
  const Reader reader(text);
  if (text[at] == '\'')
    if (const size_t end = match_contraction(reader, at, false)) return end;
  const size_t word = at + (text[at] == ' ' ? 1 : 0);
  const unsigned first = reader.classes_at(word);
  if (first & kLetter) return reader.run(word, kLetter);
  if (first & kNumber) return reader.run(word, kNumber);
  if (first == 0) return reader.run(word, 0);
  return match_spaces(reader, text, at);
}

WordMatcher find_word_matcher(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return match_gpt2;
  if (pattern == kLlama3Pattern) return match_llama3<3>;
  if (pattern == kQwen2Pattern) return match_llama3<1>;
  return nullptr;
}

}  // namespace ssm
