// All splitting is a sequence of stretches, each a match of some pattern or not, joined as the behaviour says. The
// rules for empty matches and runs of matches are those of the package that made the files.
#include "tokenizers/pre_tokenizer.h"

#include <optional>
#include <vector>

#include "core/error.h"
#include "tokenizers/byte_alphabet.h"
#include "tokenizers/metaspace.h"
#include "tokenizers/regex.h"
#include "tokenizers/unicode.h"
#include "tokenizers/utf8.h"
#include "tokenizers/word_patterns.h"

namespace ssm {
namespace {

enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior behavior_of(const Component& part, const char* fallback) {
  const std::string name = fallback ? part.text("behavior", fallback) : part.text("behavior");
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  part.unsupported("the behavior " + name);
}

// Joins stretches, which come from left to right and cover the text, into pieces.
class Joiner {
 public:
  Joiner(Piece whole, Behavior behavior, EmitPiece emit) : whole_(whole), behavior_(behavior), emit_(emit) {}

  void add(size_t begin, size_t end, bool match) {
    switch (behavior_) {
      case Behavior::isolated: send(begin, end); break;
      case Behavior::removed:
        if (!match) send(begin, end);
        break;
      case Behavior::contiguous: open(begin, end, any_ && match == last_match_); break;
      case Behavior::merged_with_previous: open(begin, end, any_ && match && !last_match_); break;
      case Behavior::merged_with_next:
        // A match joins the stretch behind it when that is no match.
        if (open_ && last_match_ && !match) {
          open_end_ = end;
          flush();
        } else {
          flush();
          begin_open(begin, end);
          if (!match) flush();
        }
        break;
    }
    any_ = true;
    last_match_ = match;
  }

  void finish() { flush(); }

 private:
  // Starts a new piece, or lengthens the one that is open.
  void open(size_t begin, size_t end, bool join) {
    if (join) {
      open_end_ = end;
      return;
    }
    flush();
    begin_open(begin, end);
  }
  void begin_open(size_t begin, size_t end) {
    open_ = true;
    open_begin_ = begin;
    open_end_ = end;
  }
  void flush() {
    if (open_) send(open_begin_, open_end_);
    open_ = false;
  }
  void send(size_t begin, size_t end) {
    if (begin < end) emit_({whole_.text.substr(begin, end - begin), whole_.at_start && begin == 0});
  }

  Piece whole_;
  Behavior behavior_;
  EmitPiece emit_;
  bool any_ = false, last_match_ = false, open_ = false;
  size_t open_begin_ = 0, open_end_ = 0;
};

// Stretches of a regular expression.
void split_by(const Regex& regex, bool invert, Behavior behavior, Piece piece, EmitPiece emit) {
  Joiner joiner(piece, behavior, emit);
  size_t done = 0;
  regex.each(piece.text, [&](Regex::Match match) {
    if (match.begin > done) joiner.add(done, match.begin, invert);
    joiner.add(match.begin, match.end, !invert);
    done = match.end;
  });
  if (done < piece.text.size()) joiner.add(done, piece.text.size(), invert);
  joiner.finish();
}

// Stretches of single characters that `matches`, and of what lies between them.
template <class Matches>
void split_by_character(const Matches& matches, Behavior behavior, Piece piece, EmitPiece emit) {
  Joiner joiner(piece, behavior, emit);
  size_t done = 0;
  for (size_t at = 0; at < piece.text.size();) {
    const size_t begin = at;
    if (!matches(next_point(piece.text, at))) continue;
    if (begin > done) joiner.add(done, begin, false);
    joiner.add(begin, at, true);
    done = at;
  }
  if (done < piece.text.size()) joiner.add(done, piece.text.size(), false);
  joiner.finish();
}

class Split : public PreTokenizer {
 public:
  explicit Split(const Component& part)
      : regex_(make_pattern(part)), behavior_(behavior_of(part, nullptr)), invert_(part.flag("invert")) {
    const Component pattern(part.object("pattern"), part.where());
    if (!pattern.find("Regex") || pattern.find("String")) return;
    // These matchers cover the text without gaps, which leaves nothing but their matches.
    const bool matches_stay =
        invert_ ? behavior_ == Behavior::isolated || behavior_ == Behavior::removed : behavior_ == Behavior::isolated;
    if (matches_stay) matcher_ = find_word_matcher(pattern.text("Regex"));
  }

  void split(Piece piece, EmitPiece emit) const override {
    if (!matcher_) return split_by(regex_, invert_, behavior_, piece, emit);
    for (size_t at = 0; at < piece.text.size();) {
      const size_t end = matcher_(piece.text, at);
      emit({piece.text.substr(at, end - at), piece.at_start && at == 0});
      at = end;
    }
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
  WordMatcher matcher_ = nullptr;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space), use_regex_(use_regex) {}

  void split(Piece piece, EmitPiece emit) const override {
    std::string prefixed, encoded;
    if (add_prefix_space_ && !piece.text.starts_with(' ')) {
      prefixed.reserve(piece.text.size() + 1);
      prefixed += ' ';
      prefixed += piece.text;
      piece.text = prefixed;
    }
    for (size_t at = 0; at < piece.text.size();) {
      const size_t end = use_regex_ ? match_gpt2(piece.text, at) : piece.text.size();
      encoded.clear();
      append_in_byte_alphabet(encoded, piece.text.substr(at, end - at));
      emit({encoded, piece.at_start && at == 0});
      at = end;
    }
  }

 private:
  bool add_prefix_space_, use_regex_;
};

// Splits at the characters of a class.
class ByClass : public PreTokenizer {
 public:
  ByClass(CharacterClass which, Behavior behavior) : which_(which), behavior_(behavior) {}
  void split(Piece piece, EmitPiece emit) const override {
    const CharacterTable& classes = character_table();
    split_by_character([&](char32_t c) { return (classes(c) & which_) != 0; }, behavior_, piece, emit);
  }

 private:
  CharacterClass which_;
  Behavior behavior_;
};

class ByCharacter : public PreTokenizer {
 public:
  explicit ByCharacter(char32_t delimiter) : delimiter_(delimiter) {}
  void split(Piece piece, EmitPiece emit) const override {
    split_by_character([&](char32_t c) { return c == delimiter_; }, Behavior::removed, piece, emit);
  }

 private:
  char32_t delimiter_;
};

// \w+|[^\w\s]+, and the rest is dropped.
class Whitespace : public PreTokenizer {
 public:
  void split(Piece piece, EmitPiece emit) const override {
    const CharacterTable& classes = character_table();
    size_t begin = 0;
    int kind = 0;  // of the stretch from `begin`: 0 space, 1 word, 2 other
    for (size_t at = 0; at < piece.text.size();) {
      const size_t here = at;
      const unsigned found = classes(next_point(piece.text, at));
      const int now = found & kWord ? 1 : found & kWhitespace ? 0 : 2;
      if (now == kind) continue;
      if (kind != 0) emit({piece.text.substr(begin, here - begin), piece.at_start && begin == 0});
      begin = here;
      kind = now;
    }
    if (kind != 0) emit({piece.text.substr(begin), piece.at_start && begin == 0});
  }
};

class FixedLength : public PreTokenizer {
 public:
  explicit FixedLength(size_t length) : length_(length) {}
  void split(Piece piece, EmitPiece emit) const override {
    for (size_t at = 0; at < piece.text.size();) {
      const size_t begin = at;
      for (size_t i = 0; i < length_ && at < piece.text.size(); ++i) next_point(piece.text, at);
      emit({piece.text.substr(begin, at - begin), piece.at_start && begin == 0});
    }
  }

 private:
  size_t length_;
};

class SpaceMarks : public PreTokenizer {
 public:
  explicit SpaceMarks(Metaspace settings) : settings_(settings) { append_utf8(mark_, settings.replacement); }

  void split(Piece piece, EmitPiece emit) const override {
    std::string marked;
    marked.reserve(piece.text.size() + mark_.size());
    for (const char c : piece.text) {
      if (c == ' ')
        marked += mark_;
      else
        marked += c;
    }
    const bool wanted = settings_.prepend == Metaspace::Prepend::always ||
                        (settings_.prepend == Metaspace::Prepend::first && piece.at_start);
    if (wanted && !marked.starts_with(mark_)) marked.insert(0, mark_);
    const Piece whole{marked, piece.at_start};
    if (settings_.split)
      split_by_character([&](char32_t c) { return c == settings_.replacement; }, Behavior::merged_with_next, whole,
                         emit);
    else
      emit(whole);
  }

 private:
  Metaspace settings_;
  std::string mark_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void split(Piece piece, EmitPiece emit) const override { from(0, piece, emit); }

 private:
  void from(size_t stage, Piece piece, EmitPiece emit) const {
    if (stage == parts_.size()) return emit(piece);
    parts_[stage]->split(piece, [&](Piece inner) { from(stage + 1, inner, emit); });
  }
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

std::unique_ptr<PreTokenizer> in_sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) {
  return std::make_unique<Sequence>(std::move(parts));
}

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json& json, const std::string& where) {
  if (json.is_null()) return nullptr;
  const Component part(json, where);
  const std::string type = part.type();
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  if (type == "ByteLevel")
    return std::make_unique<ByteLevel>(part.flag("add_prefix_space"), part.flag("use_regex", true));
  if (type == "Split") return std::make_unique<Split>(part);
  if (type == "Metaspace") return std::make_unique<SpaceMarks>(read_metaspace(part));
  if (type == "Whitespace") return std::make_unique<Whitespace>();
  if (type == "WhitespaceSplit") return std::make_unique<ByClass>(kWhitespace, Behavior::removed);
  if (type == "Punctuation") return std::make_unique<ByClass>(kPunctuation, behavior_of(part, "Isolated"));
  if (type == "Digits")
    return std::make_unique<ByClass>(kNumeric,
                                     part.flag("individual_digits") ? Behavior::isolated : Behavior::contiguous);
  if (type == "CharDelimiterSplit") return std::make_unique<ByCharacter>(part.character("delimiter"));
  if (type == "FixedLength") {
    const size_t length = part.find("length") ? part.count("length") : 5;
    require(length > 0, where, ".length is 0, expected at least 1");
    return std::make_unique<FixedLength>(length);
  }
  if (type == "BertPreTokenizer") {
    parts.push_back(std::make_unique<ByClass>(kWhitespace, Behavior::removed));
    parts.push_back(std::make_unique<ByClass>(kPunctuation, Behavior::isolated));
    return in_sequence(std::move(parts));
  }
  if (type == "Sequence") {
    for (const Json& inner : part.array("pretokenizers")) {
      const std::string place = text(where, ".pretokenizers[", parts.size(), "]");
      parts.push_back(make_pre_tokenizer(inner, place));
      require(parts.back() != nullptr, place, " is null, expected a pre-tokenizer");
    }
    return in_sequence(std::move(parts));
  }
  part.unsupported("the pre-tokenizer " + type);
}

}  // namespace ssm
