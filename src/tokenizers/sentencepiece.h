// A SentencePiece .model, through libsentencepiece: for checkpoints that come without a tokenizer.json.
#pragma once

#include <memory>

#include "core/files.h"
#include "tokenizers/tokenizer.h"

namespace ssm {

// Throws Error on a file that is damaged or that the library should not be trusted with.
std::unique_ptr<Tokenizer> open_sentencepiece(const Path& path);

}  // namespace ssm
