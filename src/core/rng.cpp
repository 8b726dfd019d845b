#include "core/rng.h"

#include <cmath>
#include <numbers>

namespace ssm {
namespace {

// FNV-1a, 64 bits: any stable hash of a stream's name does.
uint64_t hash(std::string_view text) {
  uint64_t value = 0xcbf29ce484222325u;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return value;
}

uint64_t join(uint32_t low, uint32_t high) { return (static_cast<uint64_t>(high) << 32) | low; }

}  // namespace

Rng::Rng(uint64_t seed, std::string_view stream)
    : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, stream_(hash(stream)) {}

std::array<uint32_t, 4> Rng::block(uint64_t position) const {
  std::array<uint32_t, 4> c = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                               static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
  uint32_t k0 = key_[0], k1 = key_[1];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;  // the golden ratio
    k1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return c;
}

uint32_t Rng::bits(uint64_t position) const { return block(position / 4)[position % 4]; }

double Rng::uniform(uint64_t position) const {
  const auto b = block(position);
  return static_cast<double>(join(b[0], b[1]) >> 11) * 0x1p-53;
}

double Rng::normal(uint64_t position) const {
  const auto b = block(position);
  const double u = static_cast<double>((join(b[0], b[1]) >> 11) + 1) * 0x1p-53;  // (0, 1]: the logarithm is finite
  const double v = static_cast<double>(join(b[2], b[3]) >> 11) * 0x1p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

uint64_t Rng::below(uint64_t position, uint64_t limit) const {
  const auto b = block(position);
  return static_cast<uint64_t>((static_cast<unsigned __int128>(join(b[0], b[1])) * limit) >> 64);
}

}  // namespace ssm
