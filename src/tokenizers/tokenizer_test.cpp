// The built-in tokenizers, and what a spec may name.
#include "tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/rng.h"
#include "formats/test_files.h"

namespace ssm {
namespace {

std::string error_of(const std::string& spec) {
  try {
    open_tokenizer(spec);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Tokenizers, BytesRoundTrip) {
  const auto tokenizer = open_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocab(), 256);
  EXPECT_EQ(tokenizer->name(), "bytes");
  EXPECT_FALSE(tokenizer->end_of_text());
  EXPECT_EQ(tokenizer->encode("A\xC3\xA9"), (std::vector<int64_t>{65, 0xC3, 0xA9}));
  EXPECT_TRUE(tokenizer->encode("").empty());
  std::string every;
  for (int byte = 0; byte < 256; ++byte) every += static_cast<char>(byte);
  const Rng rng(1, "tokenizer test");
  for (uint64_t i = 0; i < 1000; ++i) every += static_cast<char>(rng.below(i, 256));
  const auto ids = tokenizer->encode(every);
  for (const int64_t id : ids) ASSERT_TRUE(id >= 0 && id < 256);
  EXPECT_EQ(tokenizer->decode(ids), every);
  EXPECT_EQ(tokenizer->encode_with_specials(every), ids);
}

TEST(Tokenizers, IdsOutsideTheVocabularyAreErrors) {
  for (const char* name : {"bytes", "dna"}) {
    const auto tokenizer = open_tokenizer(name);
    for (const int64_t id : {int64_t{-1}, tokenizer->vocab(), INT64_MAX, INT64_MIN}) {
      EXPECT_THROW(tokenizer->bytes_of(id), Error);
      EXPECT_THROW(tokenizer->decode(std::vector<int64_t>{1, id}), Error);
    }
  }
}

TEST(Tokenizers, DnaTakesBasesInEitherCaseAndNamesAnythingElse) {
  const auto tokenizer = open_tokenizer("dna");
  const auto ids = tokenizer->encode("ACGTN\nacgtn\r\n");
  EXPECT_EQ(ids, (std::vector<int64_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
  EXPECT_EQ(tokenizer->decode(ids), "ACGTNACGTN");
  EXPECT_EQ(tokenizer->vocab(), 5);
  for (const auto& [text, problem] : {std::pair{"ACXG", "'X' at byte 2"}, {"AC\xC3\xA9", "byte 195 at byte 2"}}) {
    try {
      tokenizer->encode(text);
      FAIL() << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(problem), std::string::npos) << error.what();
    }
  }
}

TEST(Tokenizers, UnknownSpecsSayWhatThereIs) {
  const ScratchDirectory scratch;
  EXPECT_NE(error_of(scratch.path() / "none.json").find("no such file"), std::string::npos);
  EXPECT_NE(error_of("byte").find("'byte'"), std::string::npos);
  EXPECT_NE(error_of(""), "");
  EXPECT_NE(error_of(scratch.path()).find("no tokenizer.json and no tokenizer.model"), std::string::npos);
  EXPECT_NE(error_of(scratch.file("tokenizer.json", "{}")).find("has no \"model\""), std::string::npos);
  EXPECT_NE(error_of(scratch.file("tokenizer.json", "{")).find("not valid JSON"), std::string::npos);
}

}  // namespace
}  // namespace ssm
