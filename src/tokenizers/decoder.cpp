// One class a type. Strings here are bytes: those of one token need not be valid UTF-8 by themselves.
#include "tokenizers/decoder.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "tokenizers/byte_alphabet.h"
#include "tokenizers/metaspace.h"
#include "tokenizers/regex.h"
#include "tokenizers/utf8.h"

namespace ssm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

std::string joined(const std::vector<std::string>& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  return all;
}

class ByteLevel : public Decoder {
 public:
  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    std::string bytes, storage;
    for (const std::string& token : tokens) append_from_byte_alphabet(bytes, token);
    return {std::string(well_formed(bytes, storage))};
  }
  std::string bytes_of(std::string token) const override {
    std::string bytes;
    append_from_byte_alphabet(bytes, token);
    return bytes;
  }
  bool joins() const override { return true; }
};

// Works on each token alone, though the first and the last may be treated apart.
class TokenWise : public Decoder {
 public:
  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = rewrite(tokens[i], i == 0, i + 1 == tokens.size());
    return tokens;
  }
  std::string bytes_of(std::string token) const override { return rewrite(token, false, false); }

 private:
  virtual std::string rewrite(const std::string& token, bool first, bool last) const = 0;
};

class SpaceMarks : public TokenWise {
 public:
  explicit SpaceMarks(Metaspace settings) : settings_(settings) {}

 private:
  std::string rewrite(const std::string& token, bool first, bool) const override {
    const bool drop = first && settings_.prepend != Metaspace::Prepend::never;
    std::string out;
    for (size_t at = 0; at < token.size();) {
      const size_t begin = at;
      if (next_point(token, at) != settings_.replacement)
        out.append(token, begin, at - begin);
      else if (!drop)
        out += ' ';
    }
    return out;
  }
  Metaspace settings_;
};

class Replace : public TokenWise {
 public:
  explicit Replace(const Component& part) : pattern_(make_pattern(part)), content_(part.text("content")) {}

 private:
  std::string rewrite(const std::string& token, bool, bool) const override {
    std::string out;
    size_t done = 0;
    if (!token.empty())
      pattern_.each(token, [&](Regex::Match match) {
        out.append(token, done, match.begin - done);
        out += content_;
        done = match.end;
      });
    return out.append(token, done);
  }
  Regex pattern_;
  std::string content_;
};

// Drops up to `start` of one character at the front of a token and up to `stop` at its end.
class Strip : public TokenWise {
 public:
  explicit Strip(const Component& part) : start_(part.count("start")), stop_(part.count("stop")) {
    append_utf8(dropped_, part.character("content"));
  }

 private:
  std::string rewrite(const std::string& token, bool, bool) const override {
    std::string_view rest = token;
    for (size_t i = 0; i < start_ && rest.starts_with(dropped_); ++i) rest.remove_prefix(dropped_.size());
    for (size_t i = 0; i < stop_ && rest.ends_with(dropped_); ++i) rest.remove_suffix(dropped_.size());
    return std::string(rest);
  }
  size_t start_, stop_;
  std::string dropped_;
};

// The mark of a word's end becomes a space, or nothing at the end of the text.
class WordEnd : public TokenWise {
 public:
  explicit WordEnd(std::string suffix) : suffix_(std::move(suffix)) {}

 private:
  std::string rewrite(const std::string& token, bool, bool last) const override {
    std::string out;
    size_t done = 0;
    for (size_t found; (found = token.find(suffix_, done)) != std::string::npos; done = found + suffix_.size()) {
      out.append(token, done, found - done);
      if (!last) out += ' ';
    }
    return out.append(token, done);
  }
  std::string suffix_;
};

// <0x0A> becomes its byte; a run of such tokens that is not valid UTF-8 becomes one U+FFFD a byte.
class ByteFallback : public Decoder {
 public:
  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    std::vector<std::string> out;
    std::string run, storage;
    const auto end_run = [&] {
      if (run.empty()) return;
      if (well_formed(run, storage).data() == run.data())
        out.push_back(run);
      else
        out.insert(out.end(), run.size(), std::string(kReplacement));
      run.clear();
    };
    for (std::string& token : tokens) {
      if (const std::optional<char> byte = byte_of(token)) {
        run += *byte;
        continue;
      }
      end_run();
      out.push_back(std::move(token));
    }
    end_run();
    return out;
  }
  std::string bytes_of(std::string token) const override {
    const std::optional<char> byte = byte_of(token);
    return byte ? std::string(1, *byte) : token;
  }

 private:
  static std::optional<char> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
    // One digit behind a plus sign is a number too, for the library that made these files.
    std::string_view digits = token.substr(3, 2);
    if (digits[0] == '+') digits.remove_prefix(1);
    int value = 0;
    for (const char c : digits) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                               : -1;
      if (digit < 0) return std::nullopt;
      value = value * 16 + digit;
    }
    return static_cast<char>(static_cast<unsigned char>(value));
  }
};

class Fuse : public Decoder {
 public:
  std::vector<std::string> decode(std::vector<std::string> tokens) const override { return {joined(tokens)}; }
  std::string bytes_of(std::string token) const override { return token; }
  bool joins() const override { return true; }
};

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Decoder>> parts) : parts_(std::move(parts)) {}
  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    for (const auto& part : parts_) tokens = part->decode(std::move(tokens));
    return tokens;
  }
  // What comes after all tokens were joined is about the text as a whole.
  std::string bytes_of(std::string token) const override {
    for (const auto& part : parts_) {
      token = part->bytes_of(std::move(token));
      if (part->joins()) break;
    }
    return token;
  }
  bool joins() const override {
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->joins(); });
  }

 private:
  std::vector<std::unique_ptr<Decoder>> parts_;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(const Json& json, const std::string& where) {
  if (json.is_null()) return nullptr;
  const Component part(json, where);
  const std::string type = part.type();
  if (type == "ByteLevel") return std::make_unique<ByteLevel>();
  if (type == "Metaspace") return std::make_unique<SpaceMarks>(read_metaspace(part));
  if (type == "Replace") return std::make_unique<Replace>(part);
  if (type == "Strip") return std::make_unique<Strip>(part);
  if (type == "ByteFallback") return std::make_unique<ByteFallback>();
  if (type == "Fuse") return std::make_unique<Fuse>();
  if (type == "BPEDecoder") {
    const std::string suffix = part.text("suffix");
    require(!suffix.empty(), where, ".suffix is empty, expected the mark of a word's end");
    return std::make_unique<WordEnd>(suffix);
  }
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Decoder>> parts;
    for (const Json& inner : part.array("decoders")) {
      const std::string place = text(where, ".decoders[", parts.size(), "]");
      parts.push_back(make_decoder(inner, place));
      require(parts.back() != nullptr, place, " is null, expected a decoder");
    }
    return std::make_unique<Sequence>(std::move(parts));
  }
  part.unsupported("the decoder " + type);
}

}  // namespace ssm
