// Unchecked bytes: reads stop at the end, sizes do not overflow, messages stay printable, memory is aligned.
#include "formats/untrusted.h"

#include <gtest/gtest.h>

#include <limits>

#include "formats/test_files.h"

namespace ssm {
namespace {

TEST(Untrusted, ReaderStopsAtTheEnd) {
  const std::string bytes("\x01\x02\x03\x04one\ntwo", 11);
  const std::span<const char> signs(bytes);
  ByteReader reader(std::as_bytes(signs), "file");
  EXPECT_EQ(reader.number<uint32_t>(), 0x04030201u);
  EXPECT_EQ(reader.line(), "one");
  EXPECT_EQ(reader.left(), 3u);
  EXPECT_TRUE(fails_with("file: a line has no end", [&] { reader.line(); }));
  EXPECT_TRUE(fails_with("file: needs 4 bytes at byte 8, found 3", [&] { reader.number<uint32_t>(); }));
  EXPECT_TRUE(fails_with("found 3", [&] { reader.take(std::numeric_limits<uint64_t>::max()); }));
  EXPECT_EQ(reader.text(3), "two");
  EXPECT_TRUE(fails_with("points at byte 12 of 11", [&] { reader.seek(12); }));
  reader.seek(11);
  EXPECT_EQ(reader.left(), 0u);
}

TEST(Untrusted, SizesThatOverflowAreNoSizes) {
  const auto bytes = [](std::vector<int64_t> sizes) { return checked_bytes(sizes, DType::f64); };
  constexpr int64_t kHuge = int64_t{1} << 62;
  EXPECT_EQ(bytes({}), 8);
  EXPECT_EQ(bytes({3, 5}), 120);
  EXPECT_EQ(bytes({3, 0}), 0);
  EXPECT_EQ(bytes({int64_t{1} << 60}), std::nullopt);
  EXPECT_EQ(bytes({3, -1}), std::nullopt);
  EXPECT_EQ(bytes({kHuge, kHuge, 0}), std::nullopt);
  EXPECT_EQ(bytes({0, kHuge, kHuge}), std::nullopt);
}

TEST(Untrusted, PrintableIsOneShortLine) {
  EXPECT_EQ(printable("a\nb\x7f\xff\x1b"), "a?b???");
  EXPECT_EQ(printable(std::string(500, 'x')).size(), 103u);
  EXPECT_EQ(printable(std::vector<int64_t>{1, -2}), "(1, -2)");
}

TEST(Untrusted, MisalignedBytesAreCopied) {
  const ScratchDirectory scratch;
  const auto file = std::make_shared<MappedFile>(scratch.file("x", "0123456789abcdef"));
  const auto bytes = file->bytes();
  EXPECT_EQ(aligned_memory(file, bytes.subspan(8), 8).get(), bytes.data() + 8);
  EXPECT_EQ(aligned_memory(file, bytes.subspan(4), 4).get(), bytes.data() + 4);
  const auto copy = aligned_memory(file, bytes.subspan(4, 6), 8);
  EXPECT_NE(copy.get(), bytes.data() + 4);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(copy.get()) % 8, 0u);
  EXPECT_EQ(std::memcmp(copy.get(), "456789", 6), 0);
  EXPECT_NE(aligned_memory(file, bytes.subspan(16), 8).get(), nullptr);
  EXPECT_NE(aligned_memory(file, bytes.subspan(15, 0), 8).get(), nullptr);
}

}  // namespace
}  // namespace ssm
