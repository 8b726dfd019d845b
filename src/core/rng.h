// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a function of (seed, stream,
// position) and of nothing else, so it does not matter who draws it, when, or on how many threads.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace ssm {

class Rng {
 public:
  // `stream` separates uses of one seed: the name of a parameter, "shuffle", "sample".
  Rng(uint64_t seed, std::string_view stream);

  std::array<uint32_t, 4> block(uint64_t position) const;   // 128 random bits at this position
  uint32_t bits(uint64_t position) const;                   // 32 of them; positions 4i..4i+3 share a block
  double uniform(uint64_t position) const;                  // [0, 1), 53 bits
  double normal(uint64_t position) const;                   // mean 0, deviation 1 (Box-Muller)
  uint64_t below(uint64_t position, uint64_t limit) const;  // [0, limit), bias below 2^-64 * limit

 private:
  std::array<uint32_t, 2> key_;
  uint64_t stream_;
};

}  // namespace ssm
