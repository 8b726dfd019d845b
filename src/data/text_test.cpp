// Text gives the same tokens whatever the size of the pieces, and pieces end where the contract says.
#include "data/text.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "core/error.h"
#include "core/rng.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

class TextFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  Path file(const std::string& name, const std::string& contents) const {
    write_file(directory_ / name, contents);
    return directory_ / name;
  }

  const Path directory_ = fs::temp_directory_path() / ("ssm_text_test_" + std::to_string(getpid()));
};

std::vector<int64_t> bytes_of(std::string_view text) {
  std::vector<int64_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

const TextEncoder kBytes = {bytes_of, 256, "bytes"};

std::vector<int64_t> all_of(const Tokens& tokens) {
  std::vector<int64_t> ids(static_cast<size_t>(tokens.count()));
  tokens.read(0, ids);
  return ids;
}

std::string random_text(uint64_t seed, uint64_t size) {
  static constexpr std::string_view kParts[] = {"word",         " ",    "\n", "\r\n", "\n\n", "\xC3\xA9",
                                                "\xE6\x97\xA5", "\x80", "\t"};
  const Rng rng(seed, "text test");
  std::string text;
  for (uint64_t i = 0; text.size() < size; ++i) text += kParts[rng.below(i, std::size(kParts))];
  return text;
}

TEST_F(TextFiles, PiecesOfAnySizeGiveTheSameTokens) {
  const std::string first = random_text(1, 5000), second = random_text(2, 3000);
  const std::vector<Path> files = {file("a", first), file("b", second)};
  const std::vector<int64_t> expected = bytes_of(first + second);
  for (const int64_t piece : {1, 2, 3, 5, 64, 1000, 4999, 5000, 5001, 1 << 20}) {
    TextReading reading;
    reading.piece = piece;
    int64_t last = 0;
    reading.progress = [&](int64_t bytes, int64_t total) {
      EXPECT_GT(bytes, last);
      EXPECT_EQ(total, static_cast<int64_t>(expected.size()));
      last = bytes;
    };
    EXPECT_EQ(all_of(read_tokens(files, kBytes, reading)), expected) << piece;
    EXPECT_EQ(last, static_cast<int64_t>(expected.size()));
    EXPECT_EQ(read_tokens(files, kBytes).origin(), files[0].string() + " and 1 more");
    const Path output = directory_ / "out.tokens";
    last = 0;
    EXPECT_EQ(tokenize_files(files, kBytes, output, reading), static_cast<int64_t>(expected.size()));
    EXPECT_EQ(all_of(Tokens::open(output)), expected) << piece;
    EXPECT_EQ(Tokens::open(output).tokenizer(), "bytes");
  }
}

TEST_F(TextFiles, PiecesEndBetweenLinesAndNeverInsideACharacter) {
  EXPECT_EQ(cut_position("a\nb\nc"), 4u);
  EXPECT_EQ(cut_position("a\nb\n"), 2u);     // what follows the last line end is not known yet
  EXPECT_EQ(cut_position("a\nb \n c"), 2u);  // white space around the second line end
  EXPECT_EQ(cut_position("a\n\nb"), 3u);     // no line end stands alone
  EXPECT_EQ(cut_position("\n"), 1u);
  EXPECT_EQ(cut_position("ab\xE6\x97"), 2u);
  EXPECT_EQ(cut_position("ab\xE6\x97\xA5"), 2u);  // whole, but only what follows would tell in general
  EXPECT_EQ(cut_position("abc"), 2u);
  EXPECT_EQ(cut_position("a"), 1u);
  EXPECT_EQ(cut_position("\xE6\x97"), 2u);               // nothing before it: any cut is better than none
  EXPECT_EQ(cut_position("a\x80\x80\x80\x80\x80"), 6u);  // not UTF-8
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::string text = random_text(seed, 1 + seed);
    const size_t cut = cut_position(text);
    EXPECT_TRUE(cut > 0 && cut <= text.size()) << "seed " << seed;
  }
}

TEST_F(TextFiles, LinesReachTheEncoderWhole) {
  std::string text;
  for (int line = 0; line < 500; ++line) text += "line " + std::to_string(line) + "\n";
  TextReading reading;
  reading.piece = 100;
  int64_t calls = 0;
  const TextEncoder checking = {[&](std::string_view piece) {
                                  EXPECT_EQ(piece.substr(0, 5), "line ");
                                  EXPECT_EQ(piece.back(), '\n');
                                  EXPECT_LE(piece.size(), 100u);
                                  ++calls;
                                  return bytes_of(piece);
                                },
                                256, "bytes"};
  EXPECT_EQ(all_of(read_tokens({file("lines", text)}, checking, reading)), bytes_of(text));
  EXPECT_GT(calls, 40);
}

TEST_F(TextFiles, ErrorsLeaveTheOutputAsItWas) {
  const Path good = file("good", "some text"), empty = file("empty", ""), output = file("out", "old");
  const auto fails = [&](const std::vector<Path>& files, const TextEncoder& encoder) {
    EXPECT_THROW(tokenize_files(files, encoder, output), Error);
    EXPECT_THROW(read_tokens(files, encoder), Error);
    EXPECT_EQ(read_text(output), "old");
    EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 3);
  };
  fails({}, kBytes);
  fails({good, empty}, kBytes);
  fails({good, directory_ / "missing"}, kBytes);
  fails({good, directory_}, kBytes);
  fails({good}, {bytes_of, 100, "too small a vocabulary"});
  fails({good}, {[](std::string_view) -> std::vector<int64_t> { throw Error("encoder"); }, 256, "bytes"});
}

}  // namespace
}  // namespace ssm
