// The Feistel network of permutation.h: (left, right) -> (right, left ^ f(round, right)), with f from the counter-based
// generator.
#include "data/permutation.h"

#include <algorithm>
#include <bit>

#include "core/error.h"

namespace ssm {
namespace {

// Four rounds are the least that look random on large domains (Luby and Rackoff); tiny domains, where a half is one
// or two bits, need more before every arrangement is about equally likely.
constexpr uint64_t kRounds = 8;

}  // namespace

Permutation::Permutation(int64_t size, const Rng& rng) : rng_(rng), size_(static_cast<uint64_t>(size)) {
  DCHECK(size >= 1);
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size_ - 1)) + 1) / 2);
}

uint64_t Permutation::scramble(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;  // at most 32 bits
  uint64_t left = value >> half_bits_, right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t next = left ^ (rng_.bits(round << 32 | right) & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

int64_t Permutation::operator()(int64_t i) const {
  DCHECK(i >= 0 && static_cast<uint64_t>(i) < size_);
  auto value = static_cast<uint64_t>(i);
  do value = scramble(value);
  while (value >= size_);
  return static_cast<int64_t>(value);
}

}  // namespace ssm
