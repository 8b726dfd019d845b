// The tokenizer without a vocabulary: one id a byte, 256 ids. Any bytes are text, valid UTF-8 or not, and decoding
// gives back exactly what was encoded. There is no end-of-text id.
#pragma once

#include "tokenizers/tokenizer.h"

namespace ssm {

class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int64_t> encode(std::string_view text) const override;
  std::string bytes_of(int64_t id) const override;
  int64_t vocab() const override { return 256; }
  std::string name() const override { return "bytes"; }
};

}  // namespace ssm
