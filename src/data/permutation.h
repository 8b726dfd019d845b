// A random permutation of [0, size) that is computed where it is asked for, not stored: a Feistel network over the
// smallest even number of bits that holds size, repeated until the result falls inside (cycle walking; Black and
// Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). data/README.md says why this is a permutation.
#pragma once

#include <cstdint>

#include "core/rng.h"

namespace ssm {

class Permutation {
 public:
  Permutation(int64_t size, const Rng& rng);  // size >= 1; one rng stream, one permutation
  int64_t operator()(int64_t i) const;        // i in [0, size)

 private:
  uint64_t scramble(uint64_t value) const;
  Rng rng_;
  uint64_t size_;
  int half_bits_;
};

}  // namespace ssm
