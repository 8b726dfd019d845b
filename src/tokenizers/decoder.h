// The "decoder" of a tokenizer file: from the strings of a vocabulary back to text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tokenizers/json_fields.h"

namespace ssm {

class Decoder {
 public:
  virtual ~Decoder() = default;
  // The strings of a whole sequence, rewritten; joined they are its text.
  virtual std::vector<std::string> decode(std::vector<std::string> tokens) const = 0;
  // The bytes that one token stands for inside a sequence, whatever is around it. Steps that look at more than one
  // token (the space dropped at the beginning, say) are left out.
  virtual std::string bytes_of(std::string token) const = 0;
  // Whether it joins all tokens, so that later steps see one string.
  virtual bool joins() const { return false; }
};

// Null for a file without one. Throws Error on a type or a setting that is not supported.
std::unique_ptr<Decoder> make_decoder(const Json& json, const std::string& where);

}  // namespace ssm
