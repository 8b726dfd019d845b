// safetensors: what is written is read back, files of the reference library are read, bad headers are errors.
#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "formats/test_files.h"

namespace ssm {
namespace {

// Bytes 1, 2, 3, ...: any pattern serves, since nothing is computed.
Tensor patterned(const Shape& shape, DType dtype) {
  Tensor result = Tensor::empty(shape, dtype);
  for (int64_t i = 0; i < result.bytes(); ++i) static_cast<uint8_t*>(result.raw())[i] = static_cast<uint8_t>(i + 1);
  return result;
}

void expect_same(const Tensor& found, const Tensor& expected) {
  ASSERT_TRUE(static_cast<bool>(found));
  EXPECT_EQ(found.dtype(), expected.dtype());
  EXPECT_EQ(found.shape(), expected.shape());
  EXPECT_EQ(found.rank(), expected.rank());
  if (expected.bytes() > 0) {
    EXPECT_EQ(std::memcmp(found.raw(), expected.raw(), static_cast<size_t>(expected.bytes())), 0);
  }
}

TEST(Safetensors, EveryDtypeAndShapeSurvives) {
  const ScratchDirectory scratch;
  const Path path = scratch.path() / "model.safetensors";
  NamedTensors tensors;
  for (const DType dtype : {DType::f16, DType::f64, DType::f32, DType::bf16, DType::i64, DType::i32})
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{7}, Shape{3, 5}, Shape{2, 0, 3}, Shape{1, 3, 1, 5}})
      tensors.emplace_back(text(name_of(dtype), ".", shape, " \"\n"), patterned(shape, dtype));
  write_safetensors(path, tensors, {{"format", "pt"}, {"step", "12"}});

  std::map<std::string, std::string> metadata;
  const TensorMap found = read_safetensors(path, &metadata);
  EXPECT_EQ(metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"step", "12"}}));
  ASSERT_EQ(found.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(found.contains(name));
    expect_same(found.at(name), tensor);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(found.at(name).raw()) % static_cast<uint64_t>(bytes_of(tensor.dtype())), 0u);
  }
}

TEST(Safetensors, DataIsAlignedAndInTheGivenOrder) {
  const ScratchDirectory scratch;
  const Path path = scratch.path() / "x.safetensors";
  write_safetensors(path, {{"z", patterned({3}, DType::f32)}, {"a", patterned({2}, DType::f32)}});
  const TensorMap found = read_safetensors(path);
  const auto address = [&](const char* name) { return reinterpret_cast<uintptr_t>(found.at(name).raw()); };
  EXPECT_EQ(address("z") % 64, 0u);
  EXPECT_EQ(address("a"), address("z") + 12);
}

TEST(Safetensors, StridedTensorsAreWrittenDense) {
  const ScratchDirectory scratch;
  const Tensor table = Tensor::of<float>(std::vector<float>{0, 1, 2, 3, 4, 5}).reshape({2, 3});
  write_safetensors(scratch.path() / "x.safetensors", {{"middle", table.columns(1, 2)}});
  const Tensor middle = read_safetensors(scratch.path() / "x.safetensors").at("middle");
  EXPECT_EQ(middle.shape(), (Shape{2, 1}));
  EXPECT_EQ(middle.data<float>()[0], 1);
  EXPECT_EQ(middle.data<float>()[1], 4);
}

TEST(Safetensors, TensorsOutliveTheMap) {
  const ScratchDirectory scratch;
  Tensor kept;
  {
    write_safetensors(scratch.path() / "x.safetensors", {{"w", patterned({5}, DType::f32)}});
    kept = read_safetensors(scratch.path() / "x.safetensors").at("w");
  }
  std::filesystem::remove(scratch.path() / "x.safetensors");
  expect_same(kept, patterned({5}, DType::f32));
}

TEST(Safetensors, NoTensorsIsAFile) {
  const ScratchDirectory scratch;
  write_safetensors(scratch.path() / "x.safetensors", {});
  EXPECT_TRUE(read_safetensors(scratch.path() / "x.safetensors").empty());
}

TEST(Safetensors, ReadsTheReferenceLibrary) {
  std::map<std::string, std::string> metadata;
  const TensorMap found = read_safetensors(testdata("dtypes.safetensors"), &metadata);
  EXPECT_EQ(metadata.at("format"), "pt");
  ASSERT_EQ(found.size(), 8u);
  EXPECT_EQ(found.at("f64").shape(), (Shape{2, 3}));
  EXPECT_EQ(found.at("f64").data<double>()[5], 5);
  EXPECT_EQ(static_cast<float>(found.at("bf16").data<BF16>()[3]), 5);
  EXPECT_EQ(static_cast<float>(found.at("f16").data<F16>()[4]), 7);
  EXPECT_EQ(found.at("i64").data<int64_t>()[1], 5);
  EXPECT_EQ(found.at("i32").data<int32_t>()[5], 10);
  EXPECT_EQ(found.at("scalar").item<float>(), 6);
  EXPECT_EQ(found.at("empty").shape(), (Shape{0, 4}));
}

std::string file_of(std::string_view header, std::string_view data) {
  return little_endian<uint64_t>(header.size()) + std::string(header) + std::string(data);
}

TEST(Safetensors, MisalignedDataIsCopied) {
  const ScratchDirectory scratch;
  const Path path = scratch.file("x", file_of(R"({"w":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}} )",
                                              little_endian<int32_t>(7) + little_endian<int32_t>(-7)));
  const Tensor found = read_safetensors(path).at("w");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(found.raw()) % 4, 0u);
  EXPECT_EQ(found.data<int32_t>()[0], 7);
  EXPECT_EQ(found.data<int32_t>()[1], -7);
}

TEST(Safetensors, BadFilesAreErrors) {
  const ScratchDirectory scratch;
  const auto refused = [&](std::string_view contents, std::string_view part) {
    SCOPED_TRACE(contents.substr(0, 200));
    const Path path = scratch.file("bad.safetensors", contents);
    EXPECT_TRUE(fails_with(part, [&] { read_safetensors(path); }));
    EXPECT_TRUE(fails_with("bad.safetensors", [&] { read_safetensors(path); }));
  };
  refused("", "is empty");
  refused("1234567", "truncated");
  refused(little_endian<uint64_t>(1000) + "{}", "says its header has 1000 bytes, found 2");
  refused(little_endian<uint64_t>(~uint64_t{0}) + "{}", "no safetensors file");
  refused(file_of(" {}", ""), "not a JSON object");
  refused(file_of("{\"a\":", ""), "is not valid JSON");
  refused(file_of("[[]]", ""), "not a JSON object");
  refused(file_of("{\"\xff\":1}", ""), "is not valid JSON");
  refused(file_of(R"({"w":1})", ""), "tensor w is not described");
  refused(file_of(R"({"w":{}})", ""), "tensor w has no dtype");
  refused(file_of(R"({"w":{"dtype":1}})", ""), "tensor w has no dtype");
  refused(file_of(R"({"w":{"dtype":"F32"}})", ""), "tensor w has no shape");
  refused(file_of(R"({"w":{"dtype":"F32","shape":[1]}})", "1234"), "tensor w has no data_offsets");
  refused(file_of(R"({"w":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", "1"), "tensor w has dtype F8_E4M3");
  refused(file_of(R"({"w":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}})", "1"), "tensor w has dtype BOOL");
  const auto one = [&](std::string_view shape, std::string_view offsets, std::string_view part) {
    refused(file_of(text(R"({"w":{"dtype":"F32","shape":)", shape, R"(,"data_offsets":)", offsets, "}}"), "12345678"),
            part);
  };
  one("[-1]", "[0,8]", "shape holds -1");
  one("[2.0]", "[0,8]", "shape holds 2.0");
  one("[\"2\"]", "[0,8]", "shape holds \"2\"");
  one("[18446744073709551615]", "[0,8]", "shape holds 18446744073709551615");
  one("[[2]]", "[0,8]", "nested");
  one("[1,1,1,1,2]", "[0,8]", "has 5 dimensions, expected at most 4");
  one("[4611686018427387904,4]", "[0,8]", "has 8 bytes, expected more than 2^63");
  one("[4611686018427387904,4,0]", "[0,0]", "expected more than 2^63");
  one("[3]", "[0,8]", "has 8 bytes, expected 12 for f32 (3)");
  one("[2]", "[8,0]", "expected a begin and an end");
  one("[2]", "[0]", "expected a begin and an end");
  one("[2]", "[0,8,8]", "expected a begin and an end");
  one("[2]", "[4,12]", "begins at byte 4 of the data, expected 0");
  one("[2]", "[0,99999999999999999999]", "data_offsets holds");
  one("[1]", "[0,4]", "holds 8 bytes of data, its header says 4");
  one("[4]", "[0,16]", "holds 8 bytes of data, its header says 16");
  const std::string entry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  refused(file_of(R"({"w":)" + entry + R"(,"w":)" + entry + "}", "1234"), "the key \"w\" appears twice");
  refused(file_of(R"({"w":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}})", "1234"),
          "the key \"dtype\" appears twice");
  refused(file_of(R"({"v":)" + entry + R"(,"w":)" + entry + "}", "12345678"),
          "begins at byte 0 of the data, expected 4");
  refused(file_of(R"({"__metadata__":1})", ""), "__metadata__ is not a JSON object");
  refused(file_of(R"({"__metadata__":{"a":1}})", ""), "__metadata__ a is not a string");
  refused(file_of("{\"a\":" + std::string(100000, '['), ""), "nested more than 3 levels deep");
}

TEST(Safetensors, BadTensorsAreNotWritten) {
  const ScratchDirectory scratch;
  const Path path = scratch.path() / "x.safetensors";
  const Tensor w = Tensor::zeros({1}, DType::f32);
  EXPECT_TRUE(fails_with("the tensor name w is taken", [&] { write_safetensors(path, {{"w", w}, {"w", w}}); }));
  EXPECT_TRUE(fails_with("name __metadata__ is taken", [&] { write_safetensors(path, {{"__metadata__", w}}); }));
  EXPECT_TRUE(fails_with("tensor w is absent", [&] { write_safetensors(path, {{"w", Tensor()}}); }));
  EXPECT_TRUE(fails_with("is not UTF-8", [&] { write_safetensors(path, {{"\xff", w}}); }));
  EXPECT_TRUE(fails_with("cannot write", [&] { write_safetensors(scratch.path() / "no" / "x", {{"w", w}}); }));
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path()));
}

}  // namespace
}  // namespace ssm
