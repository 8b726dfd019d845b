// The byte tokenizer gives back every byte string; specs that name nothing are errors of the user.
#include "tokenizers/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "core/files.h"
#include "core/rng.h"

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
}

TEST(Tokenizers, IdsOutsideTheVocabularyAreErrors) {
  const auto tokenizer = open_tokenizer("bytes");
  for (const int64_t id : {int64_t{-1}, int64_t{256}, INT64_MAX, INT64_MIN}) {
    EXPECT_THROW(tokenizer->bytes_of(id), Error);
    EXPECT_THROW(tokenizer->decode(std::vector<int64_t>{65, id}), Error);
  }
}

TEST(Tokenizers, UnknownSpecsSayWhatThereIs) {
  const Path file = std::filesystem::temp_directory_path() / "ssm_tokenizer_test.json";
  write_file(file, "{}");
  EXPECT_NE(error_of(file).find("BPE"), std::string::npos);
  EXPECT_NE(error_of(file).find("--ids"), std::string::npos);
  std::filesystem::remove(file);
  EXPECT_NE(error_of(file).find("no such file"), std::string::npos);
  EXPECT_NE(error_of("byte").find("'byte'"), std::string::npos);
  EXPECT_NE(error_of(""), "");
}

}  // namespace
}  // namespace ssm
