// What Unicode says about characters, as the package that published tokenizers were made with sees it (it mixes
// versions; tools/make_unicode_tables.py asks it for every code point), and the normal forms.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ssm {

enum CharacterClass : uint16_t {
  kLetter = 1,        // \p{L}
  kNumber = 2,        // \p{N}
  kSpace = 4,         // \s
  kWord = 8,          // \w of the Whitespace pre-tokenizer and of single_word
  kWhitespace = 16,   // White_Space
  kNumeric = 32,      // what the Digits pre-tokenizer takes for a digit
  kPunctuation = 64,  // what the Punctuation pre-tokenizer takes for punctuation
  kCombining = 128,   // what StripAccents removes
  kInert = 256,       // no normal form changes it, moves it or joins it with a neighbour
};

// Classes of every code point, in two stages: blocks of 256 that are alike are stored once.
class CharacterTable {
 public:
  CharacterTable();
  uint16_t operator()(char32_t point) const { return blocks_[block_of_[point >> 8]][point & 255]; }

 private:
  std::array<uint16_t, 0x1100> block_of_;
  std::vector<std::array<uint16_t, 256>> blocks_;
};

const CharacterTable& character_table();  // made on the first call; safe from several threads

inline bool is(char32_t point, CharacterClass which) { return (character_table()(point) & which) != 0; }

// Lower case of one code point, without regard to its neighbours; most are their own.
void append_lower(std::string& text, char32_t point);

enum class NormalForm { nfc, nfd, nfkc, nfkd };
// `text` must be valid UTF-8.
std::string normalise(std::string_view text, NormalForm form);

}  // namespace ssm
