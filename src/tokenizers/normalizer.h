// The "normalizer" of a tokenizer file: what is done to a text before it is split.
#pragma once

#include <memory>
#include <string>

#include "tokenizers/json_fields.h"

namespace ssm {

class Normalizer {
 public:
  // A text under way. `at_start` says whether it still begins with what the user's text began with.
  struct Text {
    std::string text;
    bool at_start;
  };

  virtual ~Normalizer() = default;
  virtual void apply(Text& text) const = 0;  // valid UTF-8 in and out
};

// Null for a file without one. Throws Error on a type or a setting that is not supported.
std::unique_ptr<Normalizer> make_normalizer(const Json& json, const std::string& where);

}  // namespace ssm
