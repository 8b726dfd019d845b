#include "tokenizers/vocabulary.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace ssm {

uint64_t hash_bytes(std::string_view bytes) {
  constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;  // 2^64 / golden ratio
  uint64_t hash = bytes.size() * kMultiplier;
  const auto mix = [&](uint64_t value) {
    hash = (hash ^ value) * kMultiplier;
    hash ^= hash >> 32;
  };
  for (; bytes.size() >= 8; bytes.remove_prefix(8)) {
    uint64_t eight;
    std::memcpy(&eight, bytes.data(), 8);
    mix(eight);
  }
  uint64_t rest = 0;
  for (const char c : bytes) rest = rest << 8 | static_cast<unsigned char>(c);
  mix(rest);
  return hash;
}

Vocabulary::Vocabulary(std::vector<std::pair<std::string, int64_t>> entries, const std::string& where)
    : entries_(std::move(entries)) {
  std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  for (size_t i = 0; i < entries_.size(); ++i) {
    const int64_t id = entries_[i].second;
    if (id < 0 || id > INT32_MAX) throw Error(where, ": the id ", id, " is outside 0 to ", INT32_MAX);
    if (i > 0 && entries_[i - 1].second == id)
      throw Error(where, ": the id ", id, " belongs to two strings, \"", entries_[i - 1].first, "\" and \"",
                  entries_[i].first, "\"");
  }
  slots_.assign(std::bit_ceil(entries_.size() * 2 + 1), 0);
  for (size_t i = 0; i < entries_.size(); ++i) {
    size_t slot = hash_bytes(entries_[i].first) & (slots_.size() - 1);
    while (slots_[slot]) slot = (slot + 1) & (slots_.size() - 1);
    slots_[slot] = static_cast<uint32_t>(i + 1);
  }
}

std::optional<int64_t> Vocabulary::id_of(std::string_view string) const {
  for (size_t slot = hash_bytes(string) & (slots_.size() - 1); slots_[slot]; slot = (slot + 1) & (slots_.size() - 1))
    if (const auto& [text, id] = entries_[slots_[slot] - 1]; text == string) return id;
  return std::nullopt;
}

const std::string* Vocabulary::string_of(int64_t id) const {
  // Ids without gaps, the rule, are their own index.
  if (id >= 0 && id < static_cast<int64_t>(entries_.size()) && entries_[static_cast<size_t>(id)].second == id)
    return &entries_[static_cast<size_t>(id)].first;
  const auto found = std::lower_bound(entries_.begin(), entries_.end(), id,
                                      [](const auto& entry, int64_t i) { return entry.second < i; });
  return found == entries_.end() || found->second != id ? nullptr : &found->first;
}

}  // namespace ssm
