// "dna": one id a base, A 0, C 1, G 2, T 3, N 4. Lower case, which genome files use for repeats, is the same base;
// decoding writes upper case. White space (the line ends of a file) is passed over; any other character is an error
// that names it.
#pragma once

#include "tokenizers/tokenizer.h"

namespace ssm {

class DnaTokenizer : public Tokenizer {
 public:
  std::vector<int64_t> encode(std::string_view text) const override;
  std::string bytes_of(int64_t id) const override;
  int64_t vocab() const override { return 5; }
  std::string name() const override { return "dna"; }
};

}  // namespace ssm
