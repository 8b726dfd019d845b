// From Oniguruma's syntax to PCRE2's. Everything that is passed on is known here; what is not known is refused, so that
// no pattern silently means something else.
#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <optional>
#include <vector>

#include "core/error.h"
#include "tokenizers/regex.h"
#include "tokenizers/unicode_tables.h"
#include "tokenizers/utf8.h"

namespace ssm {
namespace {

constexpr size_t kLongest = 20'000;  // bytes of a pattern
constexpr int kDeepest = 100;        // groups and classes within one another

// The inside of a bracketed class.
const char kSpaces[] =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

struct Property {
  const char* name;   // as written in a pattern: lower case, without _, - and spaces
  const char* parts;  // general categories, or the name of a script
};
constexpr std::array kProperties = {
    Property{"l", "Lu Ll Lt Lm Lo"},
    Property{"letter", "Lu Ll Lt Lm Lo"},
    Property{"m", "Mn Mc Me"},
    Property{"mark", "Mn Mc Me"},
    Property{"n", "Nd Nl No"},
    Property{"number", "Nd Nl No"},
    Property{"p", "Pc Pd Ps Pe Pi Pf Po"},
    Property{"punctuation", "Pc Pd Ps Pe Pi Pf Po"},
    Property{"s", "Sm Sc Sk So"},
    Property{"symbol", "Sm Sc Sk So"},
    Property{"z", "Zs Zl Zp"},
    Property{"separator", "Zs Zl Zp"},
};
constexpr std::array kNames = {
    "Lu",       "Ll",       "Lt",       "Lm",       "Lo",       "Mn",        "Mc",        "Me",         "Nd",
    "Nl",       "No",       "Pc",       "Pd",       "Ps",       "Pe",        "Pi",        "Pf",         "Po",
    "Sm",       "Sc",       "Sk",       "So",       "Zs",       "Zl",        "Zp",        "Cc",         "Cf",
    "Co",       "Arabic",   "Armenian", "Bengali",  "Bopomofo", "Common",    "Cyrillic",  "Devanagari", "Ethiopic",
    "Georgian", "Greek",    "Gujarati", "Gurmukhi", "Han",      "Hangul",    "Hebrew",    "Hiragana",   "Inherited",
    "Kannada",  "Katakana", "Khmer",    "Lao",      "Latin",    "Malayalam", "Mongolian", "Myanmar",    "Oriya",
    "Sinhala",  "Tamil",    "Telugu",   "Thaana",   "Thai",     "Tibetan"};

std::string hex(char32_t point) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "\\x{%x}", static_cast<unsigned>(point));
  return buffer;
}

// "Lu" -> \p{Lu} and the characters of it that PCRE2 may be too old to know; for the inside of a class.
std::string one_property(std::string_view name) {
  std::string result = text("\\p{", name, "}");
  for (size_t i = 0; i < kAddedRangeCount; ++i) {
    const AddedRange& range = kAddedRanges[i];
    if (name != range.name) continue;
    result += hex(range.first);
    if (range.last > range.first) result += "-" + hex(range.last);
  }
  return result;
}

std::string properties(std::string_view parts) {
  std::string result;
  while (!parts.empty()) {
    const size_t end = std::min(parts.find(' '), parts.size());
    result += one_property(parts.substr(0, end));
    parts.remove_prefix(std::min(end + 1, parts.size()));
  }
  return result;
}

const std::string& word_characters() {  // Alphabetic, marks, decimal digits and connectors
  static const std::string result = properties("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl Pc") +
                                    R"(\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";
  return result;
}

// What an escape in or outside a class stands for.
struct Item {
  std::optional<char32_t> point;  // one character
  std::string set;                // or these, for the inside of a class,
  bool negated = false;           // or all but these
  bool cased = false;             // whether upper and lower case differ in it
};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {
    require(pattern.size() <= kLongest, where, ": a pattern of ", pattern.size(), " bytes; at most ", kLongest,
            " are supported");
  }

  std::string translate() {
    alternatives(0);
    if (at_ < pattern_.size()) unsupported("a ) without its (");
    return std::move(out_);
  }

 private:
  struct Flags {
    bool ignore_case = false, dot_all = false;
  };

  [[noreturn]] void unsupported(std::string_view what) const {
    throw Error(where_, ": the pattern ", pattern_, " has ", what, " at byte ", at_, ", which is not supported");
  }

  bool more() const { return at_ < pattern_.size(); }
  bool ahead(std::string_view what) const { return pattern_.substr(at_).starts_with(what); }
  bool skip(std::string_view what) {
    if (!ahead(what)) return false;
    at_ += what.size();
    return true;
  }

  // Up to the end or the ) of the group around it.
  void alternatives(int depth) {
    if (depth > kDeepest) unsupported("groups nested too deeply");
    const Flags outer = flags_;
    int isolated = 0;  // (?i) opened up to the end of the group
    while (more() && !ahead(")")) {
      if (skip("|")) {
        out_ += '|';
        previous_literal_ = 0;
        continue;
      }
      if (open_options()) {
        ++isolated;
        continue;
      }
      const size_t begin = out_.size();
      if (atom(depth)) quantifier(begin);
    }
    out_.append(static_cast<size_t>(isolated), ')');
    flags_ = outer;
    previous_literal_ = 0;
  }

  // (?i) and the like, which hold to the end of the group, alternatives included.
  bool open_options() {
    const size_t start = at_;
    if (!skip("(?")) return false;
    Flags flags = flags_;
    if (!options(flags) || !skip(")")) {
      at_ = start;
      return false;
    }
    begin_options(flags);
    return true;
  }

  bool options(Flags& flags) {
    bool on = true;
    const size_t start = at_;
    for (; more(); ++at_) {
      const char c = pattern_[at_];
      if (c == '-')
        on = false;
      else if (c == 'i')
        flags.ignore_case = on;
      else if (c == 'm')
        flags.dot_all = on;
      else
        break;
    }
    return at_ > start;
  }

  void begin_options(Flags flags) {
    const std::string on = std::string(flags.ignore_case ? "i" : "") + (flags.dot_all ? "s" : "");
    const std::string off = std::string(flags.ignore_case ? "" : "i") + (flags.dot_all ? "" : "s");
    out_ += "(?" + on + (off.empty() ? "" : "-" + off) + ":";
    flags_ = flags;
    previous_literal_ = 0;
  }

  // Writes one atom; false for a comment, which is nothing.
  bool atom(int depth) {
    const char c = pattern_[at_];
    if (c == '(') return group(depth);
    if (c == '[') {
      previous_literal_ = 0;
      ++at_;
      out_ += bracket(depth);
      return true;
    }
    if (c == '*' || c == '+' || c == '?') unsupported("a repetition of nothing");
    if (c == '^' || c == '$' || c == '.') {
      out_ += c;
      ++at_;
      previous_literal_ = 0;
      return true;
    }
    if (c == '\\') return escape_outside();
    literal(next_point(pattern_, at_));
    return true;
  }

  void literal(char32_t point) {
    if (flags_.ignore_case) {
      // Oniguruma lets ß match ss and the like; PCRE2 folds one character at a time.
      const auto lower = static_cast<char>(point < 0x80 ? std::tolower(static_cast<int>(point)) : 0);
      if (point >= 0x80) unsupported("a character outside ASCII that ignores case");
      const bool joined = (previous_literal_ == 's' && (lower == 's' || lower == 't')) ||
                          (previous_literal_ == 'f' && (lower == 'f' || lower == 'i' || lower == 'l'));
      if (joined) unsupported("letters that ignore case and that a ligature matches");
      previous_literal_ = lower;
    }
    out_ += hex(point);
  }

  bool group(int depth) {
    previous_literal_ = 0;
    const Flags outer = flags_;
    ++at_;
    if (skip("?#")) {
      const size_t end = pattern_.find(')', at_);
      if (end == std::string_view::npos) unsupported("a comment without end");
      at_ = end + 1;
      return false;
    }
    if (skip("?")) {
      bool known = false;
      for (const char* kind : {":", "=", "!", ">", "<=", "<!"})
        if (!known && skip(kind)) {
          out_ += std::string("(?") + kind;
          known = true;
        }
      if (!known && skip("<")) {  // a name: nothing refers to it
        const size_t end = pattern_.find('>', at_);
        if (end == std::string_view::npos || end == at_) unsupported("a group's name without end");
        at_ = end + 1;
        out_ += "(?:";
        known = true;
      }
      if (!known) {
        Flags flags = flags_;
        if (!options(flags) || !skip(":")) unsupported("a group of this kind");
        begin_options(flags);
      }
    } else {
      out_ += "(?:";
    }
    alternatives(depth + 1);
    if (!skip(")")) unsupported("a ( without its )");
    out_ += ')';
    flags_ = outer;
    return true;
  }

  bool escape_outside() {
    if (at_ + 1 >= pattern_.size()) unsupported("a \\ at the end");
    const char c = pattern_[at_ + 1];
    const char* passed = c == 'A' ? "\\A" : c == 'z' ? "\\z" : c == 'Z' ? "\\Z" : c == 'R' ? "\\R" : nullptr;
    if (passed || c == 'b' || c == 'B') {
      at_ += 2;
      previous_literal_ = 0;
      const std::string in = "[" + word_characters() + "]";
      if (passed)
        out_ += passed;
      else if (c == 'b')
        out_ += "(?:(?<=" + in + ")(?!" + in + ")|(?<!" + in + ")(?=" + in + "))";
      else
        out_ += "(?:(?<=" + in + ")(?=" + in + ")|(?<!" + in + ")(?!" + in + "))";
      return true;
    }
    const Item item = escape();
    if (item.point) {
      literal(*item.point);
    } else {
      previous_literal_ = 0;
      out_ += (item.negated ? "[^" : "[") + item.set + "]";
    }
    return true;
  }

  // After a backslash that is not an anchor.
  Item escape() {
    ++at_;
    if (!more()) unsupported("a \\ at the end");
    const char c = pattern_[at_];
    const auto set = [&](std::string inside, bool negated) {
      ++at_;
      return Item{.set = std::move(inside), .negated = negated};
    };
    switch (c) {
      case 's': return set(kSpaces, false);
      case 'S': return set(kSpaces, true);
      case 'd': return set(one_property("Nd"), false);
      case 'D': return set(one_property("Nd"), true);
      case 'w': return set(word_characters(), false);
      case 'W': return set(word_characters(), true);
      case 'h': return set("0-9a-fA-F", false);
      case 'H': return set("0-9a-fA-F", true);
      case 'p':
      case 'P': return property();
      case 'x':
      case 'u': return Item{.point = code_point()};
      default: break;
    }
    constexpr std::string_view kLetters = "ntrfvae", kControls = "\n\t\r\f\v\a\x1b";
    if (const size_t control = kLetters.find(c); control != kLetters.npos) {
      ++at_;
      return Item{.point = static_cast<char32_t>(kControls[control])};
    }
    if (std::isalnum(static_cast<unsigned char>(c))) unsupported(text("\\", c));
    return Item{.point = next_point(pattern_, at_)};
  }

  char32_t code_point() {
    const bool braces = pattern_.substr(at_).starts_with("x{");
    const bool byte = !braces && pattern_[at_] == 'x';
    at_ += braces ? 2 : 1;
    const size_t most = braces ? 8 : byte ? 2 : 4;
    char32_t point = 0;
    size_t digits = 0;
    for (; digits < most && more() && std::isxdigit(static_cast<unsigned char>(pattern_[at_])); ++digits, ++at_) {
      const int c = std::tolower(pattern_[at_]);
      point = point * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    if (digits == 0 || (!braces && !byte && digits < 4) || (braces && !skip("}")))
      unsupported("a malformed code point");
    if (byte && point >= 0x80) unsupported("a byte that is not a character");
    if (point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) unsupported("a code point that is no character");
    return point;
  }

  Item property() {
    const bool capital = pattern_[at_] == 'P';
    ++at_;
    if (!skip("{")) unsupported("a property without braces");
    const bool not_sign = skip("^");
    const size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) unsupported("a property without end");
    const std::string_view written = pattern_.substr(at_, end - at_);
    std::string name;
    for (const char c : written)
      if (c != '_' && c != '-' && c != ' ') name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    Item item{.negated = capital != not_sign, .cased = true};
    for (const Property& known : kProperties)
      if (name == known.name) item.set = properties(known.parts);
    for (const std::string_view known : kNames)
      if (std::equal(name.begin(), name.end(), known.begin(), known.end(),
                     [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); }))
        item.set = one_property(known);
    if (item.set.empty()) unsupported(text("the property ", written));
    at_ = end + 1;
    return item;
  }

  // After the [: one atom that matches a character of the class.
  std::string bracket(int depth) {
    if (depth > kDeepest) unsupported("classes nested too deeply");
    const bool negated = skip("^");
    std::string all;  // operands of && so far, as lookaheads
    Operand operand;
    for (bool first = true;; first = false) {
      if (!more()) unsupported("a [ without its ]");
      if (!first && skip("]")) break;
      if (skip("&&")) {
        all += "(?=" + operand.atom() + ")";
        operand = {};
        continue;
      }
      if (ahead("[:")) unsupported("a POSIX class");
      if (skip("[")) {
        operand.others.push_back(bracket(depth + 1));
        continue;
      }
      const Item low = class_item();
      if (!low.point) {
        if (low.negated)
          operand.others.push_back("[^" + low.set + "]");
        else
          operand.set += low.set;
        if (flags_.ignore_case && low.cased) unsupported("a property in a class that ignores case");
        if (ahead("-") && !ahead("-]")) unsupported("a - behind a set of characters");
        continue;
      }
      char32_t high = *low.point;
      if (ahead("-") && !ahead("-]") && !ahead("-&&") && !ahead("-[")) {
        ++at_;
        if (!more()) unsupported("a [ without its ]");
        const Item last = class_item();
        if (!last.point || *last.point < *low.point) unsupported("a range that does not ascend");
        high = *last.point;
      }
      if (flags_.ignore_case && high >= 0x80) unsupported("a character outside ASCII that ignores case");
      operand.set += hex(*low.point);
      if (high > *low.point) operand.set += "-" + hex(high);
    }
    if (all.empty() && operand.others.empty()) return (negated ? "[^" : "[") + operand.set + "]";
    const std::string whole = all + operand.atom();
    return negated ? "(?:(?!" + whole + ")(?s:.))" : "(?:" + whole + ")";
  }

  struct Operand {
    std::string set;
    std::vector<std::string> others;  // classes that are not a list of characters
    std::string atom() const {
      std::string result = set.empty() ? "" : "[" + set + "]";
      for (const std::string& other : others) result += (result.empty() ? "" : "|") + other;
      return result.empty() ? "(?!)" : "(?:" + result + ")";
    }
  };

  Item class_item() {
    if (ahead("\\")) {
      if (ahead("\\b")) {
        at_ += 2;
        return Item{.point = U'\b'};
      }
      return escape();
    }
    return Item{.point = next_point(pattern_, at_)};
  }

  // A repetition of the atom written from out_[begin] on.
  void quantifier(size_t begin) {
    if (!more()) return;
    const char c = pattern_[at_];
    if (c == '*' || c == '+' || c == '?') {
      previous_literal_ = 0;
      out_ += c;
      ++at_;
      if (ahead("?") || ahead("+")) out_ += pattern_[at_++];
    } else if (c == '{') {
      const std::string counts = braces();
      if (counts.empty()) return;
      previous_literal_ = 0;
      out_ += counts;
      const bool exact = counts.find(',') == std::string::npos;
      if (ahead("?")) {
        if (exact) unsupported("a {n}?");
        out_ += '?';
        ++at_;
      } else if (ahead("+")) {  // possessive in PCRE2; one or more of the whole here
        out_.insert(begin, "(?:");
        out_ += ")+";
        ++at_;
      }
    } else {
      return;
    }
    if (more() && (ahead("*") || ahead("+") || ahead("?"))) unsupported("a repetition of a repetition");
    const size_t here = at_;
    if (ahead("{") && !braces().empty()) unsupported("a repetition of a repetition");
    at_ = here;
  }

  // {2}, {2,}, {,3}, {2,3}, or nothing if the brace is only a character.
  std::string braces() {
    const size_t start = at_;
    const auto number = [&] {
      const size_t from = at_;
      while (more() && std::isdigit(static_cast<unsigned char>(pattern_[at_]))) ++at_;
      return std::string(pattern_.substr(from, at_ - from));
    };
    ++at_;
    const std::string low = number();
    const bool comma = skip(",");
    const std::string high = comma ? number() : "";
    if ((low.empty() && high.empty()) || !skip("}")) {
      at_ = start;
      return "";
    }
    return "{" + (low.empty() ? "0" : low) + (comma ? "," : "") + high + "}";
  }

  std::string_view pattern_;
  const std::string& where_;
  size_t at_ = 0;
  std::string out_;
  Flags flags_;
  char previous_literal_ = 0;  // lower case; 0 if the atom before is no letter that ignores case
};

}  // namespace

std::string to_pcre2(std::string_view pattern, const std::string& where) {
  return Translator(pattern, where).translate();
}

}  // namespace ssm
