// The "pre_tokenizer" of a tokenizer file: splits a text into the pieces that the model sees one by one, and may
// rewrite them (bytes to the byte alphabet, spaces to ▁).
#pragma once

#include <memory>
#include <string>

#include "tokenizers/json_fields.h"
#include "tokenizers/pieces.h"

namespace ssm {

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Emits the pieces of `piece`, valid UTF-8, in order; none of them is empty. A piece is valid during the call.
  virtual void split(Piece piece, EmitPiece emit) const = 0;
};

// Null for a file without one. Throws Error on a type or a setting that is not supported.
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json& json, const std::string& where);

}  // namespace ssm
