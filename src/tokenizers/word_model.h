// The "model" of a tokenizer file: one piece of text to ids.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizers/json_fields.h"
#include "tokenizers/vocabulary.h"

namespace ssm {

class WordModel {
 public:
  virtual ~WordModel() = default;

  // Memory that outlives a call: what was worked out for words that come again, buffers. One thread at a time uses one.
  class Scratch {
   public:
    virtual ~Scratch() = default;
  };
  virtual std::unique_ptr<Scratch> make_scratch() const = 0;
  virtual void encode(std::string_view word, Scratch& scratch, std::vector<int64_t>& ids) const = 0;
  virtual const Vocabulary& vocabulary() const = 0;
};

// Throws Error on a type or a setting that is not supported.
std::unique_ptr<WordModel> make_word_model(const Json& json, const std::string& where);

// What the types share: the field "vocab", an object from strings to ids.
std::vector<std::pair<std::string, int64_t>> vocabulary_entries(const Component& part);
std::unique_ptr<WordModel> make_bpe(const Component& part);

}  // namespace ssm
