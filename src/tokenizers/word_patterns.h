// Hand-written matchers for the regular expressions that most published byte-level tokenizers split words with; the
// tests hold them against the regex library. Each takes valid UTF-8 and a position in it and returns where the match
// that begins there ends; such a match always exists.
#pragma once

#include <cstddef>
#include <string_view>

namespace ssm {

using WordMatcher = size_t (*)(std::string_view text, size_t at);

// GPT-2's, which is also the one inside the ByteLevel pre-tokenizer.
extern const std::string_view kGpt2Pattern;
size_t match_gpt2(std::string_view text, size_t at);

// The matcher of a pattern spelt exactly so, or null.
WordMatcher find_word_matcher(std::string_view pattern);

}  // namespace ssm
