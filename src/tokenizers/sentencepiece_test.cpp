// SentencePiece models give what the Python package gives, and damaged ones are errors.
#include "tokenizers/sentencepiece.h"

#include <gtest/gtest.h>

#include <random>

#include "core/error.h"
#include "formats/test_files.h"

namespace ssm {
namespace {

using Ids = std::vector<int64_t>;

Path model(const char* name) { return Path(SSM_SOURCE_ROOT) / "src/tokenizers/testdata" / name; }

// Expected ids are those of the Python package `sentencepiece` 0.2.3.
TEST(SentencePiece, EncodesAsTheLibraryItIs) {
  const std::string mixed = "\xC3\x9Cn\xC3\xAF \xE6\xBC\xA2 <|im_start|>x";
  const auto bpe = open_tokenizer(model("bpe.model").string());
  EXPECT_EQ(bpe->vocab(), 420);
  EXPECT_EQ(bpe->encode(" lead"), (Ids{375, 301, 354}));
  EXPECT_EQ(bpe->encode("Who's there?"), bpe->encode("  Who's  there?"));
  const Ids ids = bpe->encode(mixed);
  EXPECT_EQ(Ids(ids.begin(), ids.begin() + 6), (Ids{375, 199, 160, 384, 199, 179}));
  EXPECT_EQ(bpe->decode(ids), mixed);
  std::string joined;
  for (const int64_t id : ids) joined += bpe->bytes_of(id);
  EXPECT_EQ(joined, " " + mixed);  // the space before the first word is taken away by decode alone
  EXPECT_EQ(bpe->end_of_text(), std::optional<int64_t>(2));
  EXPECT_TRUE(bpe->is_special(1));
  EXPECT_FALSE(bpe->is_special(300));
  EXPECT_EQ(bpe->bytes_of(1), "");
  EXPECT_THROW(bpe->bytes_of(420), Error);
  EXPECT_THROW(bpe->decode(Ids{5, -1}), Error);

  const auto unigram = open_tokenizer(model("unigram.model").string());
  EXPECT_EQ(unigram->encode(" lead"), (Ids{260, 355, 389}));
  const auto rules = open_tokenizer(model("rules.model").string());
  EXPECT_EQ(rules->decode(rules->encode("A\xC3\xA9 \xEF\xAC\x81")), "ae fi");
}

TEST(SentencePiece, SpecialsFollowTheConfigBesideTheModel) {
  const ScratchDirectory scratch;
  std::filesystem::copy_file(model("bpe.model"), scratch.path() / "tokenizer.model");
  scratch.file("tokenizer_config.json", R"({"add_bos_token": true, "eos_token": {"content": "<|im_start|>"}})");
  const auto tokenizer = open_tokenizer(scratch.path().string());
  EXPECT_EQ(tokenizer->encode("lead"), (Ids{375, 301, 354}));
  EXPECT_EQ(tokenizer->encode_with_specials("lead"), (Ids{1, 375, 301, 354}));
  EXPECT_EQ(tokenizer->end_of_text(), std::optional<int64_t>(3));
}

TEST(SentencePiece, TextThatIsNotUtf8HasReplacementCharacters) {
  const auto tokenizer = open_tokenizer(model("bpe.model").string());
  EXPECT_EQ(tokenizer->encode("a\xFF\xC3z"), tokenizer->encode("a\xEF\xBF\xBD\xEF\xBF\xBDz"));
}

TEST(SentencePiece, DamagedModelsAreErrors) {
  const ScratchDirectory scratch;
  for (const char* name : {"bpe.model", "unigram.model", "rules.model"}) {
    const std::string whole = read_text(model(name));
    std::mt19937_64 random(20240501);
    int opened = 0, refused = 0;
    for (int round = 0; round < 400; ++round) {
      std::string bytes = whole;
      for (uint64_t i = 0; i <= random() % 4; ++i) {
        // Half of the time near the end, where the settings and the table of normalisations are.
        const size_t at = random() % 2 ? random() % bytes.size() : bytes.size() - 1 - random() % (bytes.size() / 4);
        switch (random() % 4) {
          case 0: bytes[at] = static_cast<char>(random()); break;
          case 1: bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8)); break;
          case 2: bytes.erase(at, 1 + random() % 9); break;
          case 3:
            if (random() % 8 == 0)
              bytes.resize(at + 1);
            else
              bytes.insert(at, 1 + random() % 5, static_cast<char>(random()));
            break;
        }
      }
      const Path path = scratch.file("x.model", bytes);
      try {
        const auto tokenizer = open_tokenizer(path.string());
        const Ids ids = tokenizer->encode("Hello A\xC3\xA9 \xEF\xAC\x81 \xE6\xBC\xA2 <|im_start|>the king");
        tokenizer->decode(ids);
        for (const int64_t id : ids) tokenizer->bytes_of(id);
        ++opened;
      } catch (const Error& error) {
        EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
        ++refused;
      }
    }
    EXPECT_GT(opened, 0) << name;
    EXPECT_GT(refused, 40) << name;
  }
}

}  // namespace
}  // namespace ssm
