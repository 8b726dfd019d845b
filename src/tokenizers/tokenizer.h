// A tokenizer turns text into ids and back. An id stands for bytes, not characters: one character may be spread over
// several ids, so decoded text that is printed as it comes goes through Utf8Stream.
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

  virtual std::vector<int64_t> encode(std::string_view text) const = 0;
  virtual std::string bytes_of(int64_t id) const = 0;  // the bytes one id stands for; throws Error on an unknown id
  virtual int64_t vocab() const = 0;                   // ids are [0, vocab)
  virtual std::string name() const = 0;                // what a run's config records; open_tokenizer accepts it
  virtual std::optional<int64_t> end_of_text() const { return std::nullopt; }

  std::string decode(std::span<const int64_t> ids) const;  // the bytes of all ids, one after the other
};

// "bytes" is the only tokenizer of this version; anything else throws Error. Another implementation is one more file
// in this room and one line in this function.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& spec);

}  // namespace ssm
