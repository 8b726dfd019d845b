// PyTorch files: everything torch.save does to tensors is read back, nothing is run, no view leaves its storage.
#include "formats/torch_bin.h"

#include <gtest/gtest.h>

#include <limits>

#include "formats/test_files.h"

namespace ssm {
namespace {

template <class T>
double value(T x) {
  if constexpr (std::is_same_v<T, BF16> || std::is_same_v<T, F16>)
    return static_cast<double>(static_cast<float>(x));
  else
    return static_cast<double>(x);
}

// The elements in row-major order, whatever the strides.
template <class T>
std::vector<double> elements(const Tensor& tensor) {
  const Tensor dense = tensor.clone();
  std::vector<double> result;
  for (const T x : dense.span<T>()) result.push_back(value(x));
  return result;
}

std::vector<double> counted(int first, int count) {
  std::vector<double> result;
  for (int i = 0; i < count; ++i) result.push_back(first + i);
  return result;
}

TEST(TorchBin, DtypesProtocolsDevices) {
  for (const char* name : {"dtypes.bin", "protocol4.bin", "protocol5.bin", "cuda.bin"}) {
    SCOPED_TRACE(name);
    const TensorMap found = read_torch_bin(testdata(name));
    ASSERT_EQ(found.size(), 8u);
    EXPECT_EQ(found.at("f64").shape(), (Shape{2, 3}));
    EXPECT_EQ(elements<double>(found.at("f64")), counted(0, 6));
    EXPECT_EQ(elements<float>(found.at("f32")), counted(1, 3));
    EXPECT_EQ(elements<BF16>(found.at("bf16")), counted(2, 4));
    EXPECT_EQ(elements<F16>(found.at("f16")), counted(3, 5));
    EXPECT_EQ(elements<int64_t>(found.at("i64")), counted(4, 2));
    EXPECT_EQ(found.at("i32").shape(), (Shape{1, 2, 1, 3}));
    EXPECT_EQ(elements<int32_t>(found.at("i32")), counted(5, 6));
    EXPECT_EQ(found.at("scalar").rank(), 0);
    EXPECT_EQ(found.at("scalar").item<float>(), 6);
    EXPECT_EQ(found.at("empty").shape(), (Shape{0, 4}));
    for (const auto& [key, tensor] : found) EXPECT_TRUE(tensor.contiguous()) << key;
  }
}

TEST(TorchBin, ViewsKeepStridesAndShareStorage) {
  const TensorMap found = read_torch_bin(testdata("views.bin"));
  const Tensor base = found.at("base");
  EXPECT_EQ(elements<float>(base), counted(0, 24));
  EXPECT_EQ(found.at("tied").raw(), base.raw());
  EXPECT_EQ(found.at("tied").storage(), base.storage());
  const Tensor transposed = found.at("transposed");
  EXPECT_EQ(transposed.shape(), (Shape{6, 4}));
  EXPECT_FALSE(transposed.contiguous());
  EXPECT_EQ(transposed.raw(), base.raw());
  EXPECT_EQ(elements<float>(transposed)[1], 6);
  EXPECT_EQ(elements<float>(found.at("tail")), (std::vector<double>{13, 15, 17, 19, 21, 23}));
  EXPECT_EQ(elements<float>(found.at("row")), counted(6, 6));
  EXPECT_EQ(elements<float>(found.at("expanded")), std::vector<double>(6, 23));
  EXPECT_EQ(found.at("expanded").storage(), base.storage());
  EXPECT_EQ(elements<float>(found.at("bias")), counted(1, 2));
  EXPECT_NE(found.at("bias").storage(), base.storage());
}

TEST(TorchBin, NestedStateDicts) {
  for (const char* name : {"nested.bin", "nested_other.bin"}) {
    const TensorMap found = read_torch_bin(testdata(name));
    ASSERT_EQ(found.size(), 2u) << name;
    EXPECT_EQ(elements<float>(found.at("weight")), counted(1, 4));
    EXPECT_EQ(elements<float>(found.at("bias")), counted(2, 2));
  }
}

TEST(TorchBin, OtherFilesAreErrors) {
  const auto refused = [](const char* name, std::string_view part) {
    EXPECT_TRUE(fails_with(part, [&] { read_torch_bin(testdata(name)); })) << name;
  };
  refused("calls_system.bin", "system, which is refused: loading never runs code");
  refused("bare_pickle.bin", "is a bare pickle or a PyTorch file from before 1.6");
  refused("legacy.bin", "save it again with PyTorch 1.6 or later");
  refused("compressed.bin", "is compressed (method 8), expected stored");
  refused("big_endian.bin", "byte order is \"big\", expected \"little\"");
  refused("bool.bin", "tensor mask has a torch.BoolStorage");
  refused("rank5.bin", "tensor deep has 5 dimensions, expected at most 4");
  refused("list.bin", "holds no dict of tensors");
  refused("no_tensors.bin", "holds no tensors");
  refused("nested_twice.bin", "holds several dicts of tensors (a, b)");
  refused("dtypes.safetensors", "is no PyTorch file");
  refused("not_there.bin", "cannot open");
  const ScratchDirectory scratch;
  EXPECT_TRUE(fails_with("is empty", [&] { read_torch_bin(scratch.file("x.bin", "")); }));
  EXPECT_TRUE(fails_with("zip archive without data.pkl", [&] {
    read_torch_bin(scratch.file("x.bin", make_zip({{"x/y/data.pkl", "N."}})));
  }));
}

// Programs that torch.save would not write, assembled here.
std::string number(int64_t value) { return "\x8a\x08" + little_endian(value); }

std::string tuple(const std::vector<int64_t>& values) {
  std::string result = "(";
  for (const int64_t value : values) result += number(value);
  return result + "t";
}

struct View {
  int64_t storage_count = 6, offset = 0;
  std::vector<int64_t> size = {2, 3}, stride = {3, 1};
  std::string storage_type = "FloatStorage", key = "0", rest = "\x89N";
};

std::string tensor_program(const View& view) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\n" + view.storage_type + "\nU" +
         static_cast<char>(view.key.size()) + view.key +
         "U\x03"
         "cpu" +
         number(view.storage_count) + "tQ" + number(view.offset) + tuple(view.size) + tuple(view.stride) + view.rest +
         "tR";
}

class TorchView : public testing::Test {
 protected:
  TensorMap read(const std::string& program) const {
    std::string storage;
    for (int i = 0; i < 6; ++i) storage += little_endian(static_cast<float>(i));
    return read_torch_bin(scratch_.file("x.bin", make_zip({{"x/data.pkl", program}, {"x/data/0", storage}})));
  }
  Tensor read(const View& view) const { return read("}U\x01w" + tensor_program(view) + "s.").at("w"); }
  void refused(const View& view, std::string_view part) const {
    EXPECT_TRUE(fails_with(part, [&] { read(view); }));
  }
  ScratchDirectory scratch_;
};

TEST_F(TorchView, InsideItsStorage) {
  EXPECT_EQ(elements<float>(read(View{})), counted(0, 6));
  EXPECT_EQ(elements<float>(read({.offset = 5, .size = {1}, .stride = {1}})), counted(5, 1));
  EXPECT_EQ(elements<float>(read({.offset = 2, .size = {2, 2}, .stride = {1, 2}})), (std::vector<double>{2, 4, 3, 5}));
  const Tensor empty = read({.offset = 6, .size = {0, 3}, .stride = {int64_t{1} << 62, 9}});
  EXPECT_EQ(empty.shape(), (Shape{0, 3}));
  EXPECT_TRUE(empty.contiguous());
  // The stride of a dimension of one element means nothing.
  const Tensor row = read({.size = {1, 6}, .stride = {std::numeric_limits<int64_t>::max(), 1}});
  EXPECT_EQ(row.stride(0), 6);
  EXPECT_EQ(elements<float>(row), counted(0, 6));
}

TEST_F(TorchView, MisalignedStoragesStayTied) {
  const std::string one = tensor_program(View{}), two = tensor_program({.offset = 3, .size = {3}, .stride = {1}});
  const TensorMap found = read(
      "}U\x01"
      "a" +
      one +
      "sU\x01"
      "b" +
      two + "s.");
  EXPECT_EQ(found.at("a").storage(), found.at("b").storage());
  EXPECT_EQ(found.at("a").data<float>() + 3, found.at("b").data<float>());
}

TEST_F(TorchView, OutsideItsStorage) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  refused({.offset = 1}, "leaves its storage of 6 elements");
  refused({.offset = 7, .size = {0}, .stride = {1}}, "leaves its storage");
  refused({.size = {2, 4}}, "leaves its storage");
  refused({.stride = {4, 1}}, "leaves its storage");
  refused({.size = {3}, .stride = {kMost}}, "leaves its storage");
  refused({.offset = kMost, .size = {2}, .stride = {kMost}}, "leaves its storage");
  refused({.size = {kMost, kMost}, .stride = {0, 0}}, "is beyond 64 bits");
  refused({.size = {kMost, kMost, 0}, .stride = {0, 0, 0}}, "is beyond 64 bits");
  refused({.stride = {-3, 1}}, "stride is -3, expected an integer from 0");
  refused({.size = {-2, 3}}, "size is -2, expected an integer from 0");
  refused({.offset = -1}, "offset is -1");
  refused({.stride = {1}}, "its size has 2 dimensions, its stride 1");
  refused({.storage_count = 5}, "its storage has 24 bytes, expected 5 elements of f32");
  refused({.storage_count = kMost}, "its storage has 24 bytes");
  refused({.storage_count = -1}, "storage size is -1");
  refused({.storage_type = "LongStorage"}, "its storage has 24 bytes, expected 6 elements of i64");
  refused({.storage_type = "storage\nUntypedStorage"}, "refused");
  refused({.key = "7"}, "has no member x/data/7");
  refused({.key = "../data.pkl"}, "has no member x/data/../data.pkl");
  refused({.rest = ""}, "is described by 4 values, expected 6 or 7");
  refused({.rest = "\x89N}U\x04"
                   "conj\x88s"},
          "is a lazy conjugate or negative view");
}

TEST_F(TorchView, OddProgramsAreErrors) {
  const auto program_refused = [&](const std::string& program, std::string_view part) {
    EXPECT_TRUE(fails_with(part, [&] { read(program); }));
  };
  program_refused(tensor_program(View{}) + ".", "holds no dict of tensors");
  program_refused("}K\x01" + tensor_program(View{}) + "s.", "whose key is no text");
  program_refused("}U\x01wctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtRs.", "tensor w has no storage");
  program_refused("}U\x01wctorch._utils\n_rebuild_parameter\n)Rs.", "tensor w is a parameter without a tensor");
  program_refused("}U\x01wctorch._utils\n_rebuild_parameter\n(NtRs.", "tensor w is a parameter without a tensor");
  program_refused("ctorch.storage\n_load_from_bytes\nC\x01x\x85R.", "asks for torch.storage._load_from_bytes");
}

}  // namespace
}  // namespace ssm
