// A bijection for every size, different for every stream, and on tiny sizes about uniform over all arrangements.
#include "data/permutation.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "core/error.h"

namespace ssm {
namespace {

std::vector<int64_t> table(int64_t size, uint64_t seed) {
  const Permutation permutation(size, Rng(seed, "permutation test"));
  std::vector<int64_t> values;
  for (int64_t i = 0; i < size; ++i) values.push_back(permutation(i));
  return values;
}

TEST(Permutations, AreBijections) {
  std::vector<int64_t> sizes = {97, 127, 128, 129, 255, 256, 257, 1009, 4095, 4096, 4097, 65537};
  for (int64_t size = 1; size <= 70; ++size) sizes.push_back(size);
  for (const int64_t size : sizes)
    for (const uint64_t seed : {0u, 1u, 2u}) {
      std::vector<bool> seen(static_cast<size_t>(size));
      for (const int64_t value : table(size, seed)) {
        ASSERT_TRUE(value >= 0 && value < size) << "size " << size << " seed " << seed;
        ASSERT_FALSE(seen[static_cast<size_t>(value)]) << "size " << size << " seed " << seed;
        seen[static_cast<size_t>(value)] = true;
      }
    }
}

TEST(Permutations, OfSeedsDiffer) {
  EXPECT_EQ(table(1000, 5), table(1000, 5));
  EXPECT_NE(table(1000, 5), table(1000, 6));
  // Of a random permutation one element is expected to stay, and one neighbour to stay a neighbour.
  const std::vector<int64_t> values = table(10000, 5);
  int64_t fixed = 0, neighbours = 0;
  for (int64_t i = 0; i < 9999; ++i) {
    fixed += values[static_cast<size_t>(i)] == i;
    neighbours += values[static_cast<size_t>(i + 1)] == values[static_cast<size_t>(i)] + 1;
  }
  EXPECT_LT(fixed, 10);
  EXPECT_LT(neighbours, 10);
}

TEST(Permutations, OfFourElementsAreAllEquallyLikely) {
  std::map<std::vector<int64_t>, int> times;
  const int draws = 24000;
  for (uint64_t seed = 0; seed < draws; ++seed) ++times[table(4, seed)];
  EXPECT_EQ(times.size(), 24u);
  double chi_squared = 0;
  for (const auto& [values, count] : times) chi_squared += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_squared, 64);  // 23 degrees of freedom: 1e-5 of truly uniform draws lie above; these are fixed
}

TEST(Permutations, OfHugeSizesStayInside) {
  for (const int64_t size : {(int64_t{1} << 31) + 11, (int64_t{1} << 40) - 87, INT64_MAX}) {
    const Permutation permutation(size, Rng(3, "permutation test"));
    for (const int64_t i : {int64_t{0}, int64_t{1}, size / 2, size - 1}) {
      EXPECT_GE(permutation(i), 0);
      EXPECT_LT(permutation(i), size);
    }
    EXPECT_NE(permutation(0), permutation(1));
  }
}

}  // namespace
}  // namespace ssm
