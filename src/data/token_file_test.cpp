// Token files round-trip at every border of the format, appear whole or not at all, and hostile ones are errors.
#include "data/token_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "core/error.h"
#include "core/rng.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

class TokenFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  Path write(std::span<const int64_t> ids, int64_t vocab) const {
    const Path path = directory_ / "ids.tokens";
    TokenWriter writer(path, vocab, "bytes");
    writer.append(ids);
    writer.commit();
    return path;
  }
  int64_t entries() const { return std::distance(fs::directory_iterator(directory_), fs::directory_iterator()); }

  const Path directory_ = fs::temp_directory_path() / ("ssm_token_file_test_" + std::to_string(getpid()));
};

// Unlike write_file, does not wait for the disk: these files are many and short-lived.
void put(const Path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::vector<int64_t> all_of(const Tokens& tokens) {
  std::vector<int64_t> ids(static_cast<size_t>(tokens.count()));
  tokens.read(0, ids);
  return ids;
}

TEST_F(TokenFiles, RoundTripAtTheBordersOfTheWidth) {
  for (const int64_t vocab :
       {int64_t{1}, int64_t{256}, int64_t{65535}, int64_t{65536}, int64_t{65537}, int64_t{1} << 32}) {
    const std::vector<int64_t> ids = {0, vocab - 1, vocab / 2, 0, vocab - 1};
    const Path path = write(ids, vocab);
    EXPECT_EQ(fs::file_size(path), 256u + ids.size() * (vocab <= 65536 ? 2 : 4));
    for (const Tokens& tokens : {Tokens::open(path), Tokens::from_ids(ids, vocab, "bytes")}) {
      EXPECT_EQ(tokens.count(), 5);
      EXPECT_EQ(tokens.vocab(), vocab);
      EXPECT_EQ(tokens.tokenizer(), "bytes");
      EXPECT_EQ(all_of(tokens), ids);
      for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(tokens[static_cast<int64_t>(i)], ids[i]);
    }
  }
}

TEST_F(TokenFiles, ManyAppendsAreOneFile) {
  const Path path = directory_ / "ids.tokens";
  TokenWriter writer(path, 70000, "a name");
  std::vector<int64_t> expected;
  for (const size_t size : {0, 1, 262143, 262144, 262145, 600000, 3}) {  // around what is gathered before a write
    std::vector<int64_t> ids(size);
    for (size_t i = 0; i < size; ++i) ids[i] = static_cast<int64_t>((expected.size() + i) * 7919 % 70000);
    writer.append(ids);
    expected.insert(expected.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(writer.count(), static_cast<int64_t>(expected.size()));
  EXPECT_FALSE(fs::exists(path));
  writer.commit();
  EXPECT_EQ(all_of(Tokens::open(path)), expected);
  EXPECT_EQ(Tokens::open(path).tokenizer(), "a name");
}

TEST_F(TokenFiles, NoIdsIsAFileToo) {
  EXPECT_EQ(Tokens::open(write({}, 256)).count(), 0);
  EXPECT_EQ(Tokens::from_ids({}, 256, "bytes").count(), 0);
}

TEST_F(TokenFiles, HandlesOutliveTheirSource) {
  const std::vector<int64_t> ids = {1, 2, 3};
  const Path path = write(ids, 256);
  const Tokens copy = [&] {
    const Tokens original = Tokens::open(path);
    return original;
  }();
  fs::remove(path);
  EXPECT_EQ(all_of(copy), ids);
}

TEST_F(TokenFiles, NothingIsLeftWithoutCommit) {
  const std::vector<int64_t> old = {1, 2, 3};
  const Path path = write(old, 256);
  {
    TokenWriter writer(path, 256, "bytes");
    writer.append(std::vector<int64_t>(1'000'000, 5));
    EXPECT_EQ(entries(), 2);  // the old file and the temporary one
    const std::vector<int64_t> bad = {0, 1, 256};
    const std::string error = error_of([&] { writer.append(bad); });
    EXPECT_NE(error.find("id 256 at position 1000002"), std::string::npos) << error;
  }
  EXPECT_EQ(entries(), 1);
  EXPECT_EQ(all_of(Tokens::open(path)), old);
}

TEST_F(TokenFiles, BadRequestsAreErrors) {
  EXPECT_THROW(Tokens::from_ids(std::vector<int64_t>{-1}, 256, "bytes"), Error);
  EXPECT_THROW(Tokens::from_ids({}, 0, "bytes"), Error);
  EXPECT_THROW(TokenWriter(directory_ / "no such directory" / "x", 256, "bytes"), Error);
  EXPECT_THROW(TokenWriter(directory_ / "x", -1, "bytes"), Error);
  EXPECT_THROW(TokenWriter(directory_ / "x", (int64_t{1} << 32) + 1, "bytes"), Error);
  EXPECT_THROW(TokenWriter(directory_ / "x", 256, "two\nlines"), Error);
  EXPECT_THROW(TokenWriter(directory_ / "x", 256, std::string(224, 'n')), Error);
  TokenWriter(directory_ / "x", 256, std::string(223, 'n')).commit();
  EXPECT_EQ(Tokens::open(directory_ / "x").tokenizer(), std::string(223, 'n'));
  EXPECT_EQ(entries(), 1);
}

TEST_F(TokenFiles, FilesThatAreNoneAreErrors) {
  const Path path = directory_ / "file";
  EXPECT_THROW(Tokens::open(path), Error);
  EXPECT_FALSE(is_token_file(path));
  EXPECT_THROW(Tokens::open(directory_), Error);
  EXPECT_FALSE(is_token_file(directory_));
  put(path, "");
  EXPECT_NE(error_of([&] { Tokens::open(path); }).find("is empty"), std::string::npos);
  EXPECT_FALSE(is_token_file(path));
  put(path, std::string(1000, 'a'));
  EXPECT_NE(error_of([&] { Tokens::open(path); }).find("no token file"), std::string::npos);
  EXPECT_FALSE(is_token_file(path));
  EXPECT_TRUE(is_token_file(write({}, 256)));
}

TEST_F(TokenFiles, EveryTruncationAndExtensionIsAnError) {
  const std::vector<int64_t> ids = {1, 2, 3, 4, 5};
  for (const int64_t vocab : {256, 70000}) {
    const std::string whole = read_text(write(ids, vocab));
    const Path path = directory_ / "cut";
    for (size_t size = 0; size < whole.size(); ++size) {
      put(path, whole.substr(0, size));
      EXPECT_THROW(Tokens::open(path), Error) << size;
    }
    for (const size_t more : {1, 2, 4, 256}) {
      put(path, whole + std::string(more, '\0'));
      EXPECT_THROW(Tokens::open(path), Error) << more;
    }
  }
}

TEST_F(TokenFiles, MutationsAreErrorsOrIdsInsideTheVocabulary) {
  const std::vector<int64_t> ids(40, 250);
  const std::string whole = read_text(write(ids, 256));
  const Rng rng(7, "token file mutations");
  const Path path = directory_ / "mutated";
  int refused = 0, accepted = 0;
  for (uint64_t i = 0; i < 500; ++i) {
    std::string bytes = whole;
    const uint64_t flips = 1 + rng.below(8 * i, 3);
    for (uint64_t flip = 0; flip < flips; ++flip) {
      const uint64_t limit = rng.below(8 * i + 1 + flip, 2) ? 40 : bytes.size();  // half of them in the header's fields
      bytes[rng.below(8 * i + 4 + flip, limit)] ^= static_cast<char>(1u << (rng.bits(32 * i + flip) % 8));
    }
    put(path, bytes);
    try {
      const Tokens tokens = Tokens::open(path);
      ASSERT_EQ(tokens.count(), 40);
      for (const int64_t id : all_of(tokens)) ASSERT_TRUE(id >= 0 && id < tokens.vocab()) << "mutation " << i;
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos);
      ++refused;
    }
  }
  EXPECT_GT(refused, 200);
  EXPECT_GT(accepted, 20);  // flips that turn an id or the tokenizer's name into another cannot be seen
}

TEST_F(TokenFiles, AnIdOutsideTheVocabularyIsFoundWhenRead) {
  const Path path = write(std::vector<int64_t>{1, 2, 3}, 256);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(256 + 3).put('\x01');  // 2 becomes 258
  const Tokens tokens = Tokens::open(path);
  EXPECT_EQ(tokens[0], 1);
  EXPECT_EQ(tokens[2], 3);
  const std::string error = error_of([&] { static_cast<void>(tokens[1]); });
  EXPECT_NE(error.find("id 258 at position 1"), std::string::npos) << error;
}

TEST_F(TokenFiles, CountsPastThirtyTwoBits) {
  const int64_t count = (int64_t{1} << 32) + 5;
  const Path path = write({}, 256);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(24).write(reinterpret_cast<const char*>(&count), sizeof count);
  }
  std::error_code problem;
  fs::resize_file(path, static_cast<uintmax_t>(256 + 2 * count), problem);  // a hole: takes no room on the disk
  if (problem) GTEST_SKIP() << "the file system holds no sparse file of 8 GiB: " << problem.message();
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(256 + 2 * (count - 1)).put('\x07');
  const Tokens tokens = Tokens::open(path);
  EXPECT_EQ(tokens.count(), count);
  EXPECT_EQ(tokens[count - 1], 7);
  EXPECT_EQ(tokens[count - 2], 0);
  EXPECT_EQ(tokens[4], 0);
}

}  // namespace
}  // namespace ssm
