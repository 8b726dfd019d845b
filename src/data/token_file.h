// Token ids of a text, in a memory-mapped file or in memory, 2 bytes an id while the vocabulary allows it. A file of
// any size opens at once and costs only the pages that are read. The format is specified in data/README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/files.h"

namespace ssm {

// A handle to ids that never change: copies share them. Safe to read from many threads.
class Tokens {
 public:
  // Throws Error unless header and size agree. That every id is below vocab() is checked when it is read, not here:
  // checking at once would read the whole file before the first step.
  static Tokens open(const Path& path);
  // Copies ids, each in [0, vocab).
  static Tokens from_ids(std::span<const int64_t> ids, int64_t vocab, std::string tokenizer);

  int64_t count() const { return count_; }
  int64_t vocab() const { return vocab_; }
  const std::string& tokenizer() const { return tokenizer_; }  // name of the tokenizer that made the ids
  const std::string& origin() const { return origin_; }        // the file(s), or "ids in memory": opens error messages

  int64_t operator[](int64_t i) const;
  void read(int64_t begin, std::span<int64_t> out) const;  // out[i] = (*this)[begin + i]

 private:
  friend class TokenBuffer;
  Tokens(std::shared_ptr<const void> owner, const std::byte* ids, int64_t count, int64_t vocab, std::string tokenizer,
         std::string origin);
  template <class Id>
  void read_as(int64_t begin, std::span<int64_t> out) const;

  std::shared_ptr<const void> owner_;  // keeps the mapping or the memory that ids_ points into
  const std::byte* ids_;
  int64_t count_, vocab_;
  std::string tokenizer_, origin_;
};

// Whether the file begins as a token file does; false when it cannot be read.
bool is_token_file(const Path& path);

// Writes a token file of any length at constant memory. It appears under its name, whole, with commit(); without
// commit() nothing is left behind.
class TokenWriter {
 public:
  TokenWriter(const Path& path, int64_t vocab, std::string tokenizer);
  void append(std::span<const int64_t> ids);  // throws Error on an id outside [0, vocab)
  void commit();
  int64_t count() const { return count_; }

 private:
  void flush();
  FileWriter file_;
  std::string path_, tokenizer_;
  int64_t vocab_, count_ = 0;
  std::vector<std::byte> buffer_;
};

// Collects ids in memory; append() as above.
class TokenBuffer {
 public:
  // `origin`, where the text is from, opens error messages.
  TokenBuffer(int64_t vocab, std::string tokenizer, std::string origin = "ids in memory");
  void append(std::span<const int64_t> ids);
  Tokens take();  // the ids so far; leaves the buffer empty

 private:
  std::string tokenizer_, origin_;
  int64_t vocab_, count_ = 0;
  std::vector<std::byte> ids_;
};

}  // namespace ssm
