// Regular expressions of tokenizer files. They are written for Oniguruma; a pattern is translated to PCRE2 (where \s,
// \w, \b, \p{...}, options and anchors mean other things), and what has no exact translation is an error.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "tokenizers/json_fields.h"

namespace ssm {

class Regex {
 public:
  // `where` opens error messages. Throws Error on a pattern that is wrong, not supported or absurdly large.
  Regex(std::string_view pattern, const std::string& where);
  static Regex literal(std::string_view text, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) = delete;

  struct Match {
    size_t begin, end;
  };
  // Calls `found` for each match from left to right in `text`, valid UTF-8. An empty match directly behind the match
  // before it is passed over. Throws Error when a match takes too many steps.
  template <class Found>
  void each(std::string_view text, const Found& found) const {
    Search search(*this, text);
    for (Match match; search.next(match);) found(match);
  }

 private:
  struct Program;
  class Search {
   public:
    Search(const Regex& regex, std::string_view text);
    ~Search();
    Search(const Search&) = delete;
    Search& operator=(const Search&) = delete;
    bool next(Match& match);

   private:
    const Program& program_;
    std::string_view text_;
    void* data_;
    size_t at_ = 0, last_end_;
  };

  explicit Regex(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

// The "pattern" of a component: {"String": ...}, taken literally, or {"Regex": ...}.
Regex make_pattern(const Component& part);

// The same language in PCRE2's syntax, for PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE and LF as the only newline.
std::string to_pcre2(std::string_view pattern, const std::string& where);

}  // namespace ssm
