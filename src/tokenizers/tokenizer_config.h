// tokenizer_config.json, which lies beside the tokenizer of a published checkpoint and says how it is meant to be used.
#pragma once

#include <string>

#include "core/files.h"

namespace ssm {

constexpr int kDeepestTokenizerJson = 100;  // levels of any JSON of a tokenizer; real files have about ten

struct TokenizerConfig {
  std::string eos_token;  // "" if it names none
  bool add_bos_token = false, add_eos_token = false;
};

// Of the file's directory; the defaults if there is no such file. Throws Error if it is damaged.
TokenizerConfig read_tokenizer_config(const Path& tokenizer);

}  // namespace ssm
