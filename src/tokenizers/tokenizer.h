// A tokenizer turns text into ids and back. An id stands for bytes, not characters: one character may be spread over
// several ids, so decoded text that is printed as it comes goes through Utf8Stream.
//
// Text is UTF-8. Where it is not, tokenizers of characters see one U+FFFD for each maximal subpart of an ill-formed
// sequence; the tokenizer bytes takes any bytes. All methods may be called from several threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ssm {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The ids of the text alone. Special tokens that are spelt out in the text (<|endoftext|>) are found.
  virtual std::vector<int64_t> encode(std::string_view text) const = 0;
  // With what the tokenizer puts around a text, such as a begin-of-text token; the same where it puts nothing.
  virtual std::vector<int64_t> encode_with_specials(std::string_view text) const { return encode(text); }

  // The bytes one id stands for wherever it comes, for text that is streamed; throws Error on an unknown id.
  virtual std::string bytes_of(int64_t id) const = 0;
  // The text of a whole sequence, special tokens included. It may differ from the joined bytes of its ids: tokenizers
  // that write a space before the first word take it away again here, and what is not UTF-8 becomes U+FFFD in those
  // that have a tokenizer.json or a .model.
  virtual std::string decode(std::span<const int64_t> ids) const;

  virtual bool is_special(int64_t) const { return false; }  // a token that marks something and is no text
  virtual int64_t vocab() const = 0;                        // ids are in [0, vocab); there may be gaps
  virtual bool knows(int64_t id) const { return 0 <= id && id < vocab(); }  // false in a gap too
  virtual std::string name() const = 0;  // what a run's config records; open_tokenizer accepts it
  virtual std::optional<int64_t> end_of_text() const { return std::nullopt; }
};

// "bytes", "dna", the path of a tokenizer.json or of a SentencePiece .model, or a directory that has tokenizer.json or
// tokenizer.model. Anything else throws Error.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& spec);

}  // namespace ssm
