// Random damage to a file's bytes, for the tests that a reader gives a value or an Error.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <string>

#include "formats/test_files.h"

namespace ssm {

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::string mutate(std::string bytes) {
    const size_t rounds = 1 + below(3);
    for (size_t i = 0; i < rounds && !bytes.empty(); ++i) mutate_once(bytes);
    return bytes;
  }

 private:
  size_t below(size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(random_); }

  void mutate_once(std::string& bytes) {
    // Half of the time near the start, where headers are: the rest of a file is mostly elements.
    const size_t at = below(2) ? below(bytes.size()) : below(std::min<size_t>(bytes.size(), 400));
    switch (below(6)) {
      case 0: bytes.resize(at); break;
      case 1:
        for (size_t i = 0; i <= below(4); ++i) bytes[below(bytes.size())] ^= static_cast<char>(1 << below(8));
        break;
      case 2: bytes[at] = static_cast<char>(below(256)); break;
      case 3: {
        std::string inserted(1 + below(9), '\0');
        for (char& sign : inserted) sign = static_cast<char>(below(256));
        bytes.insert(at, inserted);
        break;
      }
      case 4: bytes.erase(at, 1 + below(9)); break;
      case 5: {
        constexpr std::array<uint64_t, 7> kExtreme = {
            0, 1, 0x7fffffff, 0xffffffff, uint64_t{1} << 62, uint64_t{INT64_MAX}, std::numeric_limits<uint64_t>::max()};
        const std::string value = little_endian(kExtreme[below(kExtreme.size())]);
        bytes.replace(at, value.size(), value, 0, below(2) ? 8 : 4);
        break;
      }
    }
  }

  std::mt19937_64 random_;
};

}  // namespace ssm
