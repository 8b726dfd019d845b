// One class a type. NFC, NFD, NFKC and NFKD are in unicode.cpp.
#include "tokenizers/normalizer.h"

#include "core/error.h"
#include "tokenizers/byte_alphabet.h"
#include "tokenizers/regex.h"
#include "tokenizers/unicode.h"
#include "tokenizers/utf8.h"

namespace ssm {
namespace {

class Form : public Normalizer {
 public:
  explicit Form(NormalForm form) : form_(form) {}
  void apply(Text& text) const override { text.text = normalise(text.text, form_); }

 private:
  NormalForm form_;
};

class Lowercase : public Normalizer {
 public:
  void apply(Text& text) const override {
    std::string out;
    out.reserve(text.text.size());
    for (size_t at = 0; at < text.text.size();) append_lower(out, next_point(text.text, at));
    text.text = std::move(out);
  }
};

// Drops the characters of a class.
class Without : public Normalizer {
 public:
  explicit Without(CharacterClass dropped) : dropped_(dropped) {}
  void apply(Text& text) const override {
    const CharacterTable& classes = character_table();
    std::string out;
    out.reserve(text.text.size());
    for (size_t at = 0; at < text.text.size();) {
      const size_t begin = at;
      if ((classes(next_point(text.text, at)) & dropped_) == 0)
        out.append(text.text, begin, at - begin);
      else if (begin == 0)
        text.at_start = false;
    }
    text.text = std::move(out);
  }

 private:
  CharacterClass dropped_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(Text& text) const override {
    size_t begin = 0, end = text.text.size();
    while (left_ && begin < end) {
      size_t next = begin;
      if (!is(next_point(text.text, next), kWhitespace)) break;
      begin = next;
    }
    while (right_ && end > begin) {
      const size_t last = previous_start(text.text, end);
      if (!is(point_at(text.text, last), kWhitespace)) break;
      end = last;
    }
    text.text = text.text.substr(begin, end - begin);
    text.at_start = text.at_start && begin == 0;
  }

 private:
  bool left_, right_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string front) : front_(std::move(front)) {}
  void apply(Text& text) const override {
    if (!text.text.empty()) text.text.insert(0, front_);
  }

 private:
  std::string front_;
};

class Replace : public Normalizer {
 public:
  Replace(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(Text& text) const override {
    std::string out;
    size_t done = 0;
    pattern_.each(text.text, [&](Regex::Match match) {
      out.append(text.text, done, match.begin - done);
      out += content_;
      done = match.end;
      if (match.begin == 0 && match.end > 0 && content_.empty()) text.at_start = false;
    });
    if (done == 0 && out.empty()) return;
    out.append(text.text, done);
    text.text = std::move(out);
  }

 private:
  Regex pattern_;
  std::string content_;
};

class ByteAlphabet : public Normalizer {
 public:
  void apply(Text& text) const override {
    std::string out;
    append_in_byte_alphabet(out, text.text);
    text.text = std::move(out);
  }
};

// Control characters are dropped, and what is white space in some sense becomes a space.
class Nmt : public Normalizer {
 public:
  void apply(Text& text) const override {
    std::string out;
    out.reserve(text.text.size());
    for (size_t at = 0; at < text.text.size();) {
      const size_t begin = at;
      const char32_t c = next_point(text.text, at);
      const bool dropped =
          (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
      const bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                         c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
      if (dropped && begin == 0) text.at_start = false;
      if (space)
        out += ' ';
      else if (!dropped)
        out.append(text.text, begin, at - begin);
    }
    text.text = std::move(out);
  }
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void apply(Text& text) const override {
    for (const auto& part : parts_) part->apply(text);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const Json& json, const std::string& where) {
  if (json.is_null()) return nullptr;
  const Component part(json, where);
  const std::string type = part.type();
  if (type == "NFC") return std::make_unique<Form>(NormalForm::nfc);
  if (type == "NFD") return std::make_unique<Form>(NormalForm::nfd);
  if (type == "NFKC") return std::make_unique<Form>(NormalForm::nfkc);
  if (type == "NFKD") return std::make_unique<Form>(NormalForm::nfkd);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "StripAccents") return std::make_unique<Without>(kCombining);
  if (type == "Strip") return std::make_unique<Strip>(part.flag("strip_left"), part.flag("strip_right"));
  if (type == "Prepend") return std::make_unique<Prepend>(part.text("prepend"));
  if (type == "Replace") return std::make_unique<Replace>(make_pattern(part), part.text("content"));
  if (type == "ByteLevel") return std::make_unique<ByteAlphabet>();
  if (type == "Nmt") return std::make_unique<Nmt>();
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> parts;
    for (const Json& inner : part.array("normalizers")) {
      const std::string place = text(where, ".normalizers[", parts.size(), "]");
      parts.push_back(make_normalizer(inner, place));
      require(parts.back() != nullptr, place, " is null, expected a normalizer");
    }
    return std::make_unique<Sequence>(std::move(parts));
  }
  part.unsupported("the normalizer " + type);
}

}  // namespace ssm
