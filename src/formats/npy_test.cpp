// .npy: what is written is read back, NumPy's files are read, other types and damaged headers are errors.
#include "formats/npy.h"

#include <gtest/gtest.h>

#include <cstring>

#include "formats/test_files.h"

namespace ssm {
namespace {

std::string npy(std::string_view header, std::string_view data, int version = 1) {
  const std::string size = version == 1 ? little_endian(static_cast<uint16_t>(header.size()))
                                        : little_endian(static_cast<uint32_t>(header.size()));
  return "\x93NUMPY" + std::string{static_cast<char>(version), '\0'} + size + std::string(header) + std::string(data);
}

std::string array(std::string_view descr, std::string_view shape, std::string_view data) {
  return npy(text("{'descr': '", descr, "', 'fortran_order': False, 'shape': ", shape, ", }\n"), data);
}

TEST(Npy, EveryDtypeAndShapeSurvives) {
  const ScratchDirectory scratch;
  const Path path = scratch.path() / "x.npy";
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::i64, DType::i32})
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{7}, Shape{3, 5}, Shape{2, 0, 3}, Shape{1, 3, 1, 5}}) {
      SCOPED_TRACE(text(name_of(dtype), " ", shape));
      Tensor written = Tensor::zeros(shape, dtype);
      for (int64_t i = 0; i < written.bytes(); ++i)
        static_cast<uint8_t*>(written.raw())[i] = static_cast<uint8_t>(i % 61 + 1);
      write_npy(path, written);
      EXPECT_EQ(read_text(path).find('\n') % 64, 63u);
      const Tensor found = read_npy(path);
      EXPECT_EQ(found.shape(), shape);
      if (dtype == DType::i32) {
        ASSERT_EQ(found.dtype(), DType::i64);
        for (int64_t i = 0; i < written.count(); ++i) EXPECT_EQ(found.data<int64_t>()[i], written.data<int32_t>()[i]);
      } else {
        ASSERT_EQ(found.dtype(), dtype);
        EXPECT_EQ(std::memcmp(found.raw(), written.raw(), static_cast<size_t>(written.bytes())), 0);
      }
    }
}

TEST(Npy, Bf16IsWidenedAndStridesAreResolved) {
  const ScratchDirectory scratch;
  const Path path = scratch.path() / "x.npy";
  const Tensor table = Tensor::of<float>(std::vector<float>{0, 1, 2, 3, 4, 5}).reshape({2, 3});
  write_npy(path, table.to(DType::bf16).columns(1, 3));
  const Tensor found = read_npy(path);
  EXPECT_EQ(found.dtype(), DType::f32);
  EXPECT_EQ(found.shape(), (Shape{2, 2}));
  EXPECT_EQ(std::vector<float>(found.data<float>(), found.data<float>() + 4), (std::vector<float>{1, 2, 4, 5}));
  EXPECT_TRUE(fails_with("there is no array", [&] { write_npy(path, Tensor()); }));
}

TEST(Npy, ReadsNumPy) {
  const Tensor fortran = read_npy(testdata("fortran.npy"));
  EXPECT_EQ(fortran.shape(), (Shape{2, 3}));
  EXPECT_TRUE(fortran.contiguous());
  for (int i = 0; i < 6; ++i) EXPECT_EQ(fortran.data<float>()[i], static_cast<float>(i));
  const Tensor bytes = read_npy(testdata("bytes.npy"));
  EXPECT_EQ(bytes.shape(), (Shape{2, 2}));
  EXPECT_EQ(std::vector<int64_t>(bytes.data<int64_t>(), bytes.data<int64_t>() + 4),
            (std::vector<int64_t>{0, 255, 7, 128}));
  const Tensor version2 = read_npy(testdata("version2.npy"));
  EXPECT_EQ(version2.data<int64_t>()[0], -1);
  EXPECT_EQ(version2.data<int64_t>()[2], 1);
  const Tensor version3 = read_npy(testdata("version3.npy"));
  EXPECT_EQ(static_cast<float>(version3.data<F16>()[1]), -2);
}

TEST(Npy, IntegersAreWidened) {
  const ScratchDirectory scratch;
  const auto only = [&](std::string_view descr, std::string_view data) {
    return read_npy(scratch.file("x.npy", array(descr, "(1,)", data))).item<int64_t>();
  };
  EXPECT_EQ(only("|i1", "\xff"), -1);
  EXPECT_EQ(only("|u1", "\xff"), 255);
  EXPECT_EQ(only("<i2", "\xfe\xff"), -2);
  EXPECT_EQ(only("<u2", "\xfe\xff"), 65534);
  EXPECT_EQ(only("<i4", "\xfe\xff\xff\xff"), -2);
  EXPECT_EQ(only("<u4", "\xfe\xff\xff\xff"), 4294967294);
  EXPECT_EQ(only("=i8", "\xfe\xff\xff\xff\xff\xff\xff\xff"), -2);
  EXPECT_EQ(only("<u8", "\xff\xff\xff\xff\xff\xff\xff\x7f"), INT64_MAX);
  EXPECT_TRUE(fails_with("element 0 is 18446744073709551615, expected at most 9223372036854775807",
                         [&] { only("<u8", "\xff\xff\xff\xff\xff\xff\xff\xff"); }));
}

TEST(Npy, FortranOrderOfEveryRank) {
  const ScratchDirectory scratch;
  const auto read = [&](std::string_view shape) {
    return read_npy(scratch.file("x.npy", npy(text("{\"shape\":", shape, ",\"fortran_order\":True,\"descr\":\"|u1\"}"),
                                              std::string("\0\1\2\3\4\5\6\7", 8))));
  };
  const Tensor cube = read("(2, 2, 2)");
  EXPECT_EQ(std::vector<int64_t>(cube.data<int64_t>(), cube.data<int64_t>() + 8),
            (std::vector<int64_t>{0, 4, 2, 6, 1, 5, 3, 7}));
  EXPECT_EQ(read("(8,)").data<int64_t>()[3], 3);
}

TEST(Npy, BadFilesAreErrors) {
  const ScratchDirectory scratch;
  const auto refused = [&](std::string_view contents, std::string_view part) {
    SCOPED_TRACE(contents);
    EXPECT_TRUE(fails_with(part, [&] { read_npy(scratch.file("x.npy", contents)); }));
  };
  refused("", "is empty");
  refused("\x93NUM", "is no .npy file");
  refused("PK\x03\x04 is an .npz", "is no .npy file");
  refused(npy("{}", "", 4), "format version 4.0, expected 1.0, 2.0 or 3.0");
  refused("\x93NUMPY\x01", "truncated");
  refused(npy("{}", "", 2).substr(0, 9), "truncated");
  refused(npy("{}", ""), "lacks descr, fortran_order or shape");
  refused(npy("()", ""), "is no Python dict");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)", "1234"), "no comma");
  refused(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", "1234"), "goes on after its end");
  refused(npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "1234"), "repeated key");
  refused(npy("{'descr': '<f4', 'order': 'C'}", "1234"), "unknown or repeated key");
  refused(npy("{'descr': '<f4", ""), "a string without an end");
  refused(npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "1234"), "describes records");
  refused(npy("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", "1234"), "neither True nor False");
  refused(array(">f4", "(1,)", "1234"), "holds big-endian numbers (>f4)");
  for (const char* descr : {"|b1", "<c8", "<U4", "|O", "<f16", "", "f4", "<M8[s]"})
    refused(array(descr, "(1,)", "1234"), text("holds elements of type ", descr, ", expected f2, f4, f8 or integers"));
  for (const char* shape : {"(-1,)", "(x,)", "(1.5,)", "(99999999999999999999,)", "(1 2)", "(,)"})
    refused(array("<f4", shape, "1234"), ": its .npy header has ");
  refused(array("<f4", "(1, 1, 1, 1, 1)", "1234"), "has 5 dimensions, expected at most 4");
  refused(array("<f4", "(2,)", "1234"), "has 4 bytes of elements, not what <f4 (2) needs");
  refused(array("<f4", "(1,)", "12345"), "has 5 bytes of elements");
  refused(array("|i1", "(4611686018427387904, 4)", "1234"), "has 4 bytes of elements");
  refused(array("|i1", "(0, 4611686018427387904, 4)", ""), "has 0 bytes of elements");
}

TEST(Npy, IdsAreChecked) {
  const ScratchDirectory scratch;
  const auto ids = [&](std::string_view contents) { return read_ids(scratch.file("ids.npy", contents), 10); };
  EXPECT_EQ(ids(array("|u1", "(3,)", std::string("\0\5\x09", 3))).data<int64_t>()[2], 9);
  EXPECT_EQ(ids(array("|u1", "(1, 2)", "\1\2")).shape(), (Shape{1, 2}));
  EXPECT_EQ(ids(array("|u1", "(0,)", "")).count(), 0);
  EXPECT_TRUE(fails_with("the id at (2) is 10, expected 0 to 9", [&] { ids(array("|u1", "(3,)", "\1\2\x0a")); }));
  EXPECT_TRUE(fails_with("the id at (1, 0) is -1", [&] { ids(array("|i1", "(2, 2)", "\1\2\xff\3")); }));
  EXPECT_TRUE(fails_with("holds f32, expected integers", [&] { ids(array("<f4", "(1,)", "1234")); }));
  EXPECT_TRUE(fails_with("has shape (), expected (t) or (s, t)", [&] { ids(array("|u1", "()", "\1")); }));
  EXPECT_TRUE(fails_with("has shape (1, 1, 1)", [&] { ids(array("|u1", "(1, 1, 1)", "\1")); }));
}

}  // namespace
}  // namespace ssm
