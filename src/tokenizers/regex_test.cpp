// Patterns mean what they mean in the files they come from; the hand-written matchers are the patterns they stand for.
#include "tokenizers/regex.h"

#include <gtest/gtest.h>

#include <random>

#include "core/error.h"
#include "tokenizers/unicode.h"
#include "tokenizers/utf8.h"
#include "tokenizers/word_patterns.h"

namespace ssm {
namespace {

using Strings = std::vector<std::string>;

Strings matches(std::string_view pattern, std::string_view text) {
  Strings result;
  Regex(pattern, "test").each(text, [&](Regex::Match match) {
    result.emplace_back(text.substr(match.begin, match.end - match.begin));
  });
  return result;
}

std::string error_of(std::string_view pattern) {
  try {
    Regex(pattern, "test");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Expected values are those of Oniguruma 6.9.10.
TEST(TokenizerRegex, MeansWhatItMeansInOniguruma) {
  EXPECT_EQ(matches(R"(a(?i)b|c)", "aB C c aC"), (Strings{"aB", "aC"}));  // the option spans the alternatives
  EXPECT_EQ(matches(R"(^a|a$)", "a\na\n"), (Strings{"a", "a"}));
  EXPECT_EQ(matches(R"(\h+)", "ag 1F"), (Strings{"a", "1F"}));
  EXPECT_EQ(matches(R"(a{2}+)", "aaaaa"), (Strings{"aaaa"}));  // one or more times {2}, not possessive
  EXPECT_EQ(matches(R"(a{,2})", "aaa"), (Strings{"aa", "a"}));
  EXPECT_EQ(matches(R"(a{2)", "aa{2"), (Strings{"a{2"}));
  EXPECT_EQ(matches(R"([a-z&&[^aeiou]]+)", "abcde"), (Strings{"bcd"}));
  EXPECT_EQ(matches(R"([a[x-z]]+)", "axbz"), (Strings{"ax", "z"}));
  EXPECT_EQ(matches(R"([^\S\n]+)", "a \t\nb"), (Strings{" \t"}));
  EXPECT_EQ(matches(R"([]a]+)", "]a["), (Strings{"]a"}));
  EXPECT_EQ(matches(R"((?m:.)+)", "a\nb"), (Strings{"a\nb"}));
  EXPECT_EQ(matches(R"(.+)", "a\r\nb"), (Strings{"a\r", "b"}));
  EXPECT_EQ(matches(R"(\s)", "\xE1\xA0\x8E\xC2\x85"), (Strings{"\xC2\x85"}));  // U+180E is no space
  EXPECT_EQ(matches(R"(\p{L}+|\p{^L}+)", "a1"), (Strings{"a", "1"}));
  EXPECT_EQ(matches(R"(x*)", "axxb"), (Strings{"", "xx", ""}));                // none right behind "xx"
  EXPECT_EQ(matches(R"((?i:k))", "\xE2\x84\xAA"), (Strings{"\xE2\x84\xAA"}));  // the Kelvin sign
  // Letters of Unicode 15 and 16.
  EXPECT_EQ(matches(R"(\p{L}+)", "\xF0\xAE\xAF\xB0\xF0\x90\x97\x80").size(), 1u);
  const Regex dots = Regex::literal("a.[b]\n", "test");
  int found = 0;
  dots.each("axxb a.[b]\n", [&](Regex::Match match) { found += match.begin == 5 && match.end == 11; });
  EXPECT_EQ(found, 1);
}

TEST(TokenizerRegex, WhatHasNoTranslationIsNamed) {
  for (const char* pattern :
       {R"((a)\1)", R"(\k<n>)", R"(\X)", R"([[:punct:]])", R"((?i:ss))", "(?i:\xC3\xA9)", R"(\p{Klingon})", R"((?~ab))",
        R"(\x{D800})", R"(a**)", R"([b-a])", "(a", "a)", "[a", "\\", R"((?<=a+)b)", R"(a{2}?)", "*"})
    EXPECT_NE(error_of(pattern).find(pattern), std::string::npos) << pattern << ": " << error_of(pattern);
  EXPECT_NE(error_of(std::string(1000, '(') + std::string(1000, ')')), "");
  EXPECT_NE(error_of(std::string(1'000'000, 'a')), "");
  EXPECT_NE(error_of("(?:(?:(?:a{60000}){60000}){60000})"), "");
}

TEST(TokenizerRegex, PatternsOfExponentialTimeEndWithAnError) {
  const Regex bomb("(?:a+)+b|(?:(?:a|aa)+)+$x", "test");
  EXPECT_THROW(bomb.each(std::string(5000, 'a') + "!", [](Regex::Match) {}), Error);
  const Regex deep("(?:a|b)*c", "test");  // a stack frame a character: the limit or the answer, no crash
  try {
    deep.each(std::string(3'000'000, 'a'), [](Regex::Match) {});
  } catch (const Error&) {
  }
}

class RandomText {
 public:
  explicit RandomText(uint64_t seed) : random_(seed) {}
  std::string make(size_t length) {
    // Characters that the alternatives turn on, and any others.
    static const std::vector<std::string> pieces = {" ",
                                                    "  ",
                                                    "\n",
                                                    "\r",
                                                    "\r\n",
                                                    "\t",
                                                    "\xC2\xA0",
                                                    "\xE3\x80\x80",
                                                    "'",
                                                    "'s",
                                                    "'S",
                                                    "'\xC5\xBF",
                                                    "'re",
                                                    "'Ve",
                                                    "'ll",
                                                    "'lL",
                                                    "'d",
                                                    "'M",
                                                    "'t",
                                                    "'x",
                                                    "a",
                                                    "Bc",
                                                    "1",
                                                    "23",
                                                    "\xD9\xA1",
                                                    "\xC2\xBD",
                                                    "!",
                                                    "?!",
                                                    "\xCC\x81",
                                                    "\xE6\xBC\xA2",
                                                    "\xF0\x9F\x98\x80",
                                                    "\xE2\x80\x8D",
                                                    "_",
                                                    "\xC2\x85",
                                                    "\xE2\x80\xA8",
                                                    "\x1C",
                                                    "\xE1\xA0\x8E"};
    std::string text;
    while (text.size() < length) {
      if (random_() % 4) {
        text += pieces[random_() % pieces.size()];
        continue;
      }
      const auto point = static_cast<char32_t>(random_() % (random_() % 2 ? 0x110000 : 0x3000));
      if (point < 0xD800 || point > 0xDFFF) append_utf8(text, point);
    }
    return text;
  }

 private:
  std::mt19937_64 random_;
};

TEST(TokenizerRegex, HandWrittenMatchersAreTheirPatterns) {
  const std::string start = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})";
  const std::string rest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  for (const std::string& pattern : {std::string(kGpt2Pattern), start + "{1,3}" + rest, start + rest}) {
    const WordMatcher matcher = find_word_matcher(pattern);
    ASSERT_NE(matcher, nullptr) << pattern;
    const Regex regex(pattern, "test");
    RandomText random(20240501);
    for (int round = 0; round < 300; ++round) {
      const std::string text = random.make(1 + static_cast<size_t>(round) * 4);
      size_t at = 0;
      regex.each(text, [&](Regex::Match match) {
        ASSERT_EQ(match.begin, at) << pattern;
        at = matcher(text, at);
        ASSERT_EQ(match.end, at) << pattern << " after " << text.substr(0, match.begin);
      });
      ASSERT_EQ(at, text.size());
    }
  }
  EXPECT_EQ(find_word_matcher(R"(\s+)"), nullptr);
}

// The regex library's classes, corrected, against the table: every code point.
TEST(TokenizerRegex, ClassesAgreeWithTheTableOnEveryCodePoint) {
  std::string text;
  for (char32_t point = 0; point < 0x110000; ++point)
    if (point < 0xD800 || point > 0xDFFF) append_utf8(text, point);
  for (const auto& [pattern, bit] : {std::pair{R"(\p{L})", kLetter}, {R"(\p{N})", kNumber}, {R"(\s)", kSpace}}) {
    std::vector<bool> matched(0x110000);
    Regex(pattern, "test").each(text, [&](Regex::Match match) { matched[point_at(text, match.begin)] = true; });
    for (char32_t point = 0; point < 0x110000; ++point)
      if (point < 0xD800 || point > 0xDFFF) {
        ASSERT_EQ(matched[point], is(point, bit)) << pattern << " U+" << std::hex << static_cast<uint32_t>(point);
      }
  }
}

}  // namespace
}  // namespace ssm
