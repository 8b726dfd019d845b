// The "post_processor" of a tokenizer file, as far as it concerns ids: the special tokens put around a text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenizers/json_fields.h"

namespace ssm {

// The ids of the text stand where `text` is true, else `ids`.
struct TemplatePart {
  bool text;
  std::vector<int64_t> ids;
};

// {text} for a file without one. Throws Error on a type that is not supported.
std::vector<TemplatePart> read_template(const Json& json, const std::string& where);

}  // namespace ssm
