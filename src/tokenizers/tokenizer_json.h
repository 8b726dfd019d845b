// A tokenizer.json as Hugging Face's `tokenizers` writes it, computing what that package computes: the same ids for
// every text and the same text for every sequence of ids. README.md of this room follows a text through it.
#pragma once

#include <memory>

#include "core/files.h"
#include "tokenizers/tokenizer.h"

namespace ssm {

// `path` is the file. tokenizer_config.json beside it, if there is one, may name the end-of-text token. Throws Error on
// a file that is damaged, or that asks for something this program cannot do exactly.
std::unique_ptr<Tokenizer> open_tokenizer_json(const Path& path);

}  // namespace ssm
