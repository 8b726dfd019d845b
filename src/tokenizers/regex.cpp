// PCRE2 behind the Regex interface: compiled with JIT, searched with limits.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizers/regex.h"

#include <pcre2.h>

#include <array>

#include "core/error.h"
#include "tokenizers/utf8.h"

namespace ssm {
namespace {

// Backtracking steps for one match; the patterns of real tokenizers need a few a character. A pattern that needs more
// is one whose time grows exponentially.
constexpr uint32_t kMostSteps = 5'000'000;
constexpr uint32_t kMostHeap = 64 << 10;  // KiB, for the matcher that takes over when the JIT's stack is full
constexpr size_t kJitStack = 512 << 10;   // bytes
constexpr size_t kMostPattern = 1 << 20;  // bytes of a translated pattern
constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK;

struct Release {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
template <class T>
using Owned = std::unique_ptr<T, Release>;

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 160> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

// One stack a thread, made when a pattern first needs more than PCRE2's own 32 KiB.
pcre2_jit_stack* jit_stack(void*) {
  thread_local const Owned<pcre2_jit_stack> stack(pcre2_jit_stack_create(32 << 10, kJitStack, nullptr));
  return stack.get();
}

}  // namespace

struct Regex::Program {
  std::string pattern, where;  // as the file has it
  Owned<pcre2_code> code;
  Owned<pcre2_match_context> limits;
};

Regex::Regex(std::unique_ptr<Program> program) : program_(std::move(program)) {}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

Regex::Regex(std::string_view pattern, const std::string& where) : program_(std::make_unique<Program>()) {
  program_->pattern = pattern;
  program_->where = where;
  const std::string translated = to_pcre2(pattern, where);
  require(translated.size() <= kMostPattern, where, ": the pattern is too large, ", pattern.size(), " bytes");
  const Owned<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_bsr(context.get(), PCRE2_BSR_UNICODE);
  pcre2_set_parens_nest_limit(context.get(), 250);
  int code = 0;
  PCRE2_SIZE at = 0;
  program_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), kOptions,
                                     &code, &at, context.get()));
  require(program_->code != nullptr, where, ": the pattern ", pattern, " is not supported: ", message_of(code));
  pcre2_jit_compile(program_->code.get(), PCRE2_JIT_COMPLETE);  // where there is no JIT, the interpreter does it
  program_->limits.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(program_->limits.get(), kMostSteps);
  pcre2_set_heap_limit(program_->limits.get(), kMostHeap);
  pcre2_jit_stack_assign(program_->limits.get(), jit_stack, nullptr);
}

Regex Regex::literal(std::string_view text, const std::string& where) {
  std::string pattern;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       static_cast<unsigned char>(c) >= 0x80 || c == '\n';
    if (!plain && static_cast<unsigned char>(c) > 0x20 && c != 0x7F) pattern += '\\';
    pattern += c;
  }
  return Regex(pattern, where);
}

Regex make_pattern(const Component& part) {
  const Component pattern(part.object("pattern"), part.where() + ".pattern");
  if (pattern.find("String")) return Regex::literal(pattern.text("String"), pattern.where());
  return Regex(pattern.text("Regex"), pattern.where());
}

Regex::Search::Search(const Regex& regex, std::string_view text)
    : program_(*regex.program_),
      text_(text),
      data_(pcre2_match_data_create(1, nullptr)),
      last_end_(std::string::npos) {}

Regex::Search::~Search() { pcre2_match_data_free(static_cast<pcre2_match_data*>(data_)); }

bool Regex::Search::next(Match& match) {
  auto* data = static_cast<pcre2_match_data*>(data_);
  while (at_ <= text_.size()) {
    const auto search = [&](uint32_t options) {
      return pcre2_match(program_.code.get(), reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), at_,
                         PCRE2_NO_UTF_CHECK | options, data, program_.limits.get());
    };
    int code = search(0);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT) code = search(PCRE2_NO_JIT);
    if (code == PCRE2_ERROR_NOMATCH) return false;
    require(code >= 0, program_.where, ": the pattern ", program_.pattern, " cannot be matched: ", message_of(code),
            " at byte ", at_, " of ", text_.size());
    const PCRE2_SIZE* found = pcre2_get_ovector_pointer(data);
    match = {found[0], found[1]};
    if (match.begin == match.end && match.end == last_end_) {  // nothing, right behind the match before
      if (at_ == text_.size()) return false;
      next_point(text_, at_);
      continue;
    }
    at_ = last_end_ = match.end;
    return true;
  }
  return false;
}

}  // namespace ssm
