// Text files to tokens, in pieces, so that text of any size is tokenised at constant memory (or at 2 to 4 bytes a
// token when the tokens are kept in memory). This room knows no tokenizer: the caller brings the encoding function.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/files.h"
#include "data/token_file.h"

namespace ssm {

struct TextEncoder {
  std::function<std::vector<int64_t>(std::string_view text)> encode;
  int64_t vocab;
  std::string name;  // the tokenizer's
};

struct TextReading {
  // Called after each piece. `total` is the size of all files, 0 if one of them is not a regular file.
  std::function<void(int64_t bytes, int64_t total)> progress = nullptr;
  int64_t piece = 1 << 20;  // bytes given to `encode` at once, at most
};

// The tokens of the files, one after the other, as a new token file; returns how many. A missing or empty file throws
// Error; after any error `output` is what it was before.
int64_t tokenize_files(const std::vector<Path>& files, const TextEncoder& encoder, const Path& output,
                       const TextReading& reading = {});
// The same, kept in memory.
Tokens read_tokens(const std::vector<Path>& files, const TextEncoder& encoder, const TextReading& reading = {});

// The bytes of a file, or of standard input ("-"), in pieces that can be encoded one by one: cut_position says where
// they are cut. Throws Error when it cannot be read.
class TextPieces {
 public:
  explicit TextPieces(const Path& path, int64_t piece = 1 << 20);
  ~TextPieces();
  TextPieces(const TextPieces&) = delete;
  TextPieces& operator=(const TextPieces&) = delete;

  std::string_view next();                  // until the next call; empty at the end
  int64_t bytes() const { return bytes_; }  // given out so far
  int64_t total() const { return total_; }  // of the file; 0: not known

 private:
  std::string name_, text_;
  size_t piece_, given_ = 0;  // of text_, by the last call
  int descriptor_;
  bool more_ = true;
  int64_t bytes_ = 0, total_ = 0;
};

// How many bytes of `text`, which goes on after its end, to encode before the rest is known: up to the last line end
// between two characters that are not white space, where the pretokenisers of GPT-style BPE break anyway; without
// one, the last line end; without one, the last whole UTF-8 character. More than 0 for any text that is not empty.
size_t cut_position(std::string_view text);

}  // namespace ssm
