// Damaged files: each format is mutated 500 times at random (an index 1,000 times), and reading must give tensors or an
// Error, never a crash or gigabytes of memory. The first and last element of every accepted tensor are touched; run
// under the address and undefined-behaviour sanitizers too.
#include <gtest/gtest.h>

#include <functional>

#include "core/memory.h"
#include "formats/checkpoint.h"
#include "formats/npy.h"
#include "formats/test_files.h"
#include "formats/test_mutator.h"

namespace ssm {
namespace {

constexpr int kMutations = 500;
constexpr int64_t kMostMemory = int64_t{16} << 20;  // the files have 4 KB at most

unsigned touch(const Tensor& tensor) {
  if (tensor.count() == 0) return 0;
  int64_t last = 0;
  for (int i = 0; i < tensor.rank(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  const int64_t width = bytes_of(tensor.dtype());
  const auto* first = static_cast<const uint8_t*>(tensor.raw());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first) % static_cast<uint64_t>(width), 0u);
  unsigned sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += first[i] + first[last * width + i];
  return sum;
}

// Mutates `original`, a file of the given name in `scratch`, and reads it. Both outcomes must occur, or the mutations
// would be too weak or too strong to prove anything.
void survive(const ScratchDirectory& scratch, std::string_view name, const std::string& original,
             const std::function<TensorMap(const Path&)>& read, int mutations = kMutations) {
  constexpr uint64_t kSeed = 20240501;
  Mutator mutator(kSeed);
  ASSERT_FALSE(read(scratch.file(name, original)).empty());
  int accepted = 0, refused = 0;
  volatile unsigned sum = 0;
  release_cached_memory();
  reset_memory_peak();
  for (int i = 0; i < mutations; ++i) {
    SCOPED_TRACE(text(name, ", mutation ", i, " of seed ", kSeed));
    const Path path = scratch.file(name, mutator.mutate(original));
    try {
      for (const auto& [key, tensor] : read(path)) sum = sum + touch(tensor);
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(refused, mutations / 10);
  EXPECT_LT(memory_stats().peak, kMostMemory);
}

TEST(Mutation, Safetensors) {
  const ScratchDirectory scratch;
  survive(scratch, "x.safetensors", read_text(testdata("dtypes.safetensors")), read_weights);
}

TEST(Mutation, TorchBin) {
  const ScratchDirectory scratch;
  for (const char* name : {"dtypes.bin", "views.bin", "nested.bin", "protocol4.bin", "cuda.bin"})
    survive(scratch, name, read_text(testdata(name)), read_weights);
}

TEST(Mutation, Npy) {
  const ScratchDirectory scratch;
  const auto read = [](const Path& path) { return TensorMap{{"array", read_npy(path)}}; };
  const auto read_as_ids = [](const Path& path) { return TensorMap{{"ids", read_ids(path, 256)}}; };
  for (const char* name : {"fortran.npy", "version2.npy", "version3.npy"})
    survive(scratch, name, read_text(testdata(name)), read);
  survive(scratch, "bytes.npy", read_text(testdata("bytes.npy")), read_as_ids);
}

TEST(Mutation, IndexJson) {
  const ScratchDirectory scratch;
  std::filesystem::copy_file(testdata("dtypes.safetensors"), scratch.path() / "a.safetensors");
  std::filesystem::copy_file(testdata("dtypes.bin"), scratch.path() / "b.bin");
  survive(scratch, "model.safetensors.index.json",
          R"({"metadata":{"total_size":100},"weight_map":{"f32":"a.safetensors","f64":"b.bin","i64":"b.bin"}})",
          read_weights, 2 * kMutations);
}

}  // namespace
}  // namespace ssm
