// The settings that the pre-tokenizer and the decoder Metaspace share: spaces as a visible character, ▁ as a rule.
#pragma once

#include "tokenizers/json_fields.h"

namespace ssm {

struct Metaspace {
  enum class Prepend { always, first, never };
  char32_t replacement;
  Prepend prepend;
  bool split;
};

// Also the older spelling, add_prefix_space for prepend_scheme.
Metaspace read_metaspace(const Component& part);

}  // namespace ssm
