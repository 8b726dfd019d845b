// Strings and their ids, both ways. Ids may have gaps and may be large: memory follows the number of strings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ssm {

class Vocabulary {
 public:
  // Throws Error, which opens with `where`, on an id outside [0, 2^31) or one that another string has.
  Vocabulary(std::vector<std::pair<std::string, int64_t>> entries, const std::string& where);

  std::optional<int64_t> id_of(std::string_view string) const;
  const std::string* string_of(int64_t id) const;  // null: there is no such id
  size_t size() const { return entries_.size(); }
  int64_t end() const { return entries_.empty() ? 0 : entries_.back().second + 1; }  // one more than the largest id

 private:
  std::vector<std::pair<std::string, int64_t>> entries_;  // by id
  std::vector<uint32_t> slots_;                           // hash table: index into entries_ plus 1, or 0
};

uint64_t hash_bytes(std::string_view bytes);

}  // namespace ssm
