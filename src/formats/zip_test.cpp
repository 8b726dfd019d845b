// Zip archives: members are found and lie in the mapping; what is not plainly stored, or damaged, is an error.
#include "formats/zip.h"

#include <gtest/gtest.h>

#include "formats/test_files.h"

namespace ssm {
namespace {

std::string contents_of(const ZipArchive& archive, std::string_view name) {
  const auto bytes = archive.contents(name);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class Zip : public testing::Test {
 protected:
  std::shared_ptr<MappedFile> file(std::string_view contents) const {
    return std::make_shared<MappedFile>(scratch_.file("x.zip", contents));
  }
  void refused(const std::string& contents, std::string_view part) const {
    EXPECT_TRUE(fails_with(part, [&] { ZipArchive(file(contents)).contents("a"); }));
  }
  ScratchDirectory scratch_;
};

TEST_F(Zip, FindsMembers) {
  for (const ZipForm form : {ZipForm::plain, ZipForm::zip64}) {
    const auto mapped = file(make_zip({{"x/a", "first"}, {"x/empty", ""}, {"x/b", std::string(300, 'b')}}, form));
    const ZipArchive archive(mapped);
    EXPECT_EQ(archive.members().size(), 3u);
    EXPECT_TRUE(archive.contains("x/a"));
    EXPECT_FALSE(archive.contains("a"));
    EXPECT_EQ(contents_of(archive, "x/a"), "first");
    EXPECT_EQ(contents_of(archive, "x/empty"), "");
    EXPECT_EQ(contents_of(archive, "x/b"), std::string(300, 'b'));
    EXPECT_GE(archive.contents("x/b").data(), mapped->bytes().data());
    EXPECT_TRUE(fails_with("has no member x/c", [&] { archive.contents("x/c"); }));
  }
}

TEST_F(Zip, ACommentMayFollowAndLookLikeAnEnd) {
  std::string archive = make_zip({{"a", "first"}});
  const std::string comment = "PK\x05\x06 not the end, just as long as one";
  archive.replace(archive.size() - 2, 2, little_endian(static_cast<uint16_t>(comment.size())));
  EXPECT_EQ(contents_of(ZipArchive(file(archive + comment)), "a"), "first");
}

TEST_F(Zip, BadArchivesAreErrors) {
  const std::string good = make_zip({{"a", "first"}, {"b", "second"}});
  refused("PK", "truncated or no zip archive");
  refused(std::string(100, 'x'), "truncated or no zip archive");
  for (size_t size = 1; size < good.size(); size += 7) refused(good.substr(0, size), "truncated");
  const size_t directory = good.find("PK\x01\x02");
  const auto with = [&](size_t at, std::string_view bytes) {
    std::string changed = good;
    return changed.replace(at, bytes.size(), bytes);
  };
  refused(with(directory, "X"), "entry 0 of its zip directory is damaged");
  refused(with(directory + 8, "\x01"), "is encrypted");
  refused(with(directory + 10, "\x08"), "is compressed (method 8), expected stored");
  refused(with(directory + 20, "\x04"), "the sizes of member a disagree");
  refused(with(directory + 20, "\xff\xff\xff\x7f\xff\xff\xff\x7f"), "larger than the file");
  refused(with(directory + 42, "\xff\xff\xff\x7f"), "points at byte");
  refused(with(0, "X"), "member a is damaged");
  refused(with(30, "c"), "member a has another name");
  refused(with(good.size() - 18, "\x01"), "split zip archive");
  refused(with(good.size() - 12, "\xff"), "damaged");
  refused(make_zip({{"a", "1"}, {"a", "2"}}), "the member a appears twice");
}

}  // namespace
}  // namespace ssm
