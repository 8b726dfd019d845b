// However the bytes are cut, the text is the same, valid, and never contains half a character.
#include "tokenizers/utf8_stream.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "core/rng.h"

namespace ssm {
namespace {

constexpr std::string_view kR = "\xEF\xBF\xBD";

std::string whole(std::string_view bytes) {
  Utf8Stream stream;
  const std::string text = stream.push(bytes);
  return text + stream.finish();
}

std::string repeated(int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += kR;
  return text;
}

// Decodes to code points by arithmetic, independent of the tables under test.
bool is_valid(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const size_t length = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    if (length == 0 || at + length > text.size()) return false;
    uint32_t point = length == 1 ? lead : lead & ((1u << (7 - length)) - 1);
    for (size_t i = 1; i < length; ++i) {
      const auto byte = static_cast<unsigned char>(text[at + i]);
      if (byte >> 6 != 2) return false;
      point = point << 6 | (byte & 0x3Fu);
    }
    const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (point < least[length] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return false;
    at += length;
  }
  return true;
}

std::string random_bytes(uint64_t seed, uint64_t count) {
  // Mostly bytes that look like UTF-8, so that long valid and nearly valid sequences appear.
  static constexpr unsigned char kLikely[] = {'a',  0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC2,
                                              0xE0, 0xE3, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5};
  const Rng rng(seed, "utf8 test");
  std::string bytes;
  for (uint64_t i = 0; i < count; ++i)
    bytes +=
        static_cast<char>(rng.below(3 * i, 4) == 0 ? rng.below(3 * i + 1, 256) : kLikely[rng.below(3 * i + 2, 16)]);
  return bytes;
}

TEST(Utf8Stream, ValidTextPassesUnchangedHoweverItIsCut) {
  const std::string text =
      "a\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80z\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEF\xBF\xBF\xF4\x8F\xBF\xBF";
  EXPECT_EQ(whole(text), text);
  for (size_t first = 0; first <= text.size(); ++first)
    for (size_t second = first; second <= text.size(); ++second) {
      Utf8Stream stream;
      std::string joined;
      for (const std::string& piece :
           {text.substr(0, first), text.substr(first, second - first), text.substr(second)}) {
        const std::string out = stream.push(piece);
        EXPECT_TRUE(is_valid(out)) << first << ", " << second;
        joined += out;
      }
      EXPECT_EQ(joined + stream.finish(), text) << first << ", " << second;
    }
}

TEST(Utf8Stream, HoldsBackOnlyWhatIsIncomplete) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("ab\xF0\x9F"), "ab");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x80"
                        "c"),
            "\xF0\x9F\x98\x80"
            "c");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push("\xE6\x97"), "");
  EXPECT_EQ(stream.push("x"), std::string(kR) + "x");
  EXPECT_EQ(stream.push("\xE6"), "");
  EXPECT_EQ(stream.finish(), kR);
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, OneReplacementForEachMaximalSubpart) {
  const std::string r(kR);
  EXPECT_EQ(whole("\x80"), repeated(1));
  EXPECT_EQ(whole("\xC0\xAF"), repeated(2));              // overlong: C0 begins nothing
  EXPECT_EQ(whole("\xE0\x80\xAF"), repeated(3));          // overlong: 80 cannot follow E0
  EXPECT_EQ(whole("\xED\xA0\x80"), repeated(3));          // a surrogate
  EXPECT_EQ(whole("\xF4\x90\x80\x80"), repeated(4));      // past U+10FFFF
  EXPECT_EQ(whole("\xF8\x88\x80\x80\x80"), repeated(5));  // five bytes were never UTF-8
  EXPECT_EQ(whole("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                  "A"),
            repeated(4) + "A");  // table 3-11 of the standard
  // Table 3-8 of the standard.
  EXPECT_EQ(whole("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                  "A"),
            repeated(8) + "A");
  EXPECT_EQ(whole("a\xF1\x80\x80\xE1\x80\xC2"
                  "b\x80"
                  "c\x80\xBF"
                  "d"),
            "a" + repeated(3) + "b" + r + "c" + repeated(2) + "d");
}

TEST(Utf8Stream, RandomBytesGiveValidTextThatDoesNotDependOnTheCuts) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const std::string bytes = random_bytes(seed, 200), expected = whole(bytes);
    EXPECT_TRUE(is_valid(expected)) << "seed " << seed;
    EXPECT_EQ(whole(expected), expected) << "seed " << seed;
    const Rng cuts(seed, "utf8 cuts");
    Utf8Stream stream;
    std::string joined;
    uint64_t draw = 0;
    for (size_t at = 0; at < bytes.size();) {
      const size_t length = cuts.below(draw++, 6);
      const std::string out = stream.push(std::string_view(bytes).substr(at, length));
      EXPECT_TRUE(is_valid(out)) << "seed " << seed;
      joined += out;
      at += length;
    }
    EXPECT_EQ(joined + stream.finish(), expected) << "seed " << seed;
  }
}

}  // namespace
}  // namespace ssm
