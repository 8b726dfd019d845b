#include "core/files.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "core/error.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "ssm-files-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    scratch_ = pattern;
  }
  void TearDown() override { fs::remove_all(scratch_); }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(scratch_)) found.push_back(entry.path().filename().string());
    return found;
  }
  Path scratch_;
};

TEST_F(Files, AWriteAppearsWholeOrNotAtAll) {
  const Path file = scratch_ / "a";
  write_file(file, "old");
  {
    FileWriter writer(file);
    writer.write("half of it");
    EXPECT_EQ(read_text(file), "old");
  }
  EXPECT_EQ(read_text(file), "old");
  write_file(file, "new");
  EXPECT_EQ(read_text(file), "new");
  EXPECT_EQ(names(), std::vector<std::string>{"a"});
}

TEST_F(Files, ADirectoryAppearsWholeOrNotAtAll) {
  const Path directory = scratch_ / "model";
  EXPECT_THROW(write_directory(directory,
                               [](const Path& to) {
                                 write_file(to / "first", "1");
                                 throw Error("the second failed");
                               }),
               Error);
  EXPECT_TRUE(names().empty());
  write_directory(scratch_ / "model/", [](const Path& to) { write_file(to / "first", "1"); });
  EXPECT_EQ(read_text(directory / "first"), "1");
  EXPECT_EQ(names(), std::vector<std::string>{"model"});
}

TEST_F(Files, ADirectoryIsNeverReplaced) {
  write_file(scratch_ / "precious", "1");
  EXPECT_THROW(write_directory(scratch_, [](const Path&) {}), Error);
  EXPECT_EQ(read_text(scratch_ / "precious"), "1");
  fs::create_directory(scratch_ / "empty");
  write_directory(scratch_ / "empty", [](const Path& to) { write_file(to / "a", "1"); });
  EXPECT_EQ(read_text(scratch_ / "empty" / "a"), "1");
}

TEST_F(Files, WhatCannotBeWrittenOrReadSaysSo) {
  EXPECT_THROW(write_file(scratch_ / "no" / "where", "x"), Error);
  write_file(scratch_ / "file", "x");
  EXPECT_THROW(write_file(scratch_ / "file" / "below", "x"), Error);
  EXPECT_THROW(write_directory(scratch_ / "file" / "below", [](const Path&) {}), Error);
  EXPECT_THROW(MappedFile(scratch_ / "absent"), Error);
  EXPECT_THROW(MappedFile{scratch_}, Error);
  std::ofstream(scratch_ / "nothing").flush();
  EXPECT_THROW(MappedFile(scratch_ / "nothing"), Error);
}

}  // namespace
}  // namespace ssm
