// A model gets its own tokenizer or the named one, if its ids fit.
#include "engine/model_tokenizer.h"

#include <gtest/gtest.h>

#include "formats/test_files.h"

namespace ssm {
namespace {

// Three tokens.
constexpr char kTiny[] = R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})";

TEST(ModelTokenizer, IsLookedForBesideTheWeights) {
  const ScratchDirectory scratch;
  ModelConfig config;
  config.vocab_size = 256;
  EXPECT_EQ(model_tokenizer(scratch.path(), config)->name(), "bytes");
  scratch.file("tokenizer.json", kTiny);
  EXPECT_EQ(model_tokenizer(scratch.path(), config)->vocab(), 3);
  EXPECT_EQ(model_tokenizer(scratch.path(), config, "dna")->name(), "dna");
}

TEST(ModelTokenizer, OneThatDoesNotFitIsRefusedWithBothNumbers) {
  const ScratchDirectory scratch;
  ModelConfig config;
  config.pad_vocab_size_multiple = 4;
  config.vocab_size = 1;  // 4 rows
  EXPECT_TRUE(fails_with("5 in all, but the model", [&] { model_tokenizer(scratch.path(), config, "dna"); }));
  EXPECT_TRUE(fails_with("has a vocabulary of 4;", [&] { model_tokenizer(scratch.path(), config, "dna"); }));
  EXPECT_TRUE(fails_with("--tokenizer PATH", [&] { model_tokenizer(scratch.path(), config); }));
  EXPECT_EQ(model_tokenizer_if_any(scratch.path(), config), nullptr);
  scratch.file("tokenizer.json", kTiny);  // padding is welcome
  EXPECT_EQ(model_tokenizer(scratch.path(), config)->vocab(), 3);
}

TEST(ModelTokenizer, ThoseWhoNeedIdsAloneLearnWhatIsWrong) {
  const ScratchDirectory scratch;
  scratch.file("tokenizer.json", "{}");
  std::string problem;
  EXPECT_EQ(model_tokenizer_if_any(scratch.path(), {}, "", &problem), nullptr);
  EXPECT_NE(problem.find("has no \"model\""), std::string::npos) << problem;
  EXPECT_TRUE(fails_with("bytes and dna", [&] { model_tokenizer_if_any(scratch.path(), {}, "none"); }));
}

}  // namespace
}  // namespace ssm
