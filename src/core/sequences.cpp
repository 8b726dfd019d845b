#include "core/sequences.h"

#include <algorithm>

namespace ssm {

Seqs Seqs::dense(int64_t count, int64_t length) {
  return ragged(std::vector<int64_t>(static_cast<size_t>(count), length));
}

Seqs Seqs::ragged(std::span<const int64_t> lengths, std::span<const int64_t> slots) {
  require(slots.empty() || slots.size() == lengths.size(), "expected a state slot a sequence, found ", slots.size(),
          " for ", lengths.size());
  Seqs seqs;
  for (size_t s = 0; s < lengths.size(); ++s) {
    require(lengths[s] >= 0, "sequence ", s, " has length ", lengths[s]);
    seqs.offsets.push_back(seqs.offsets.back() + lengths[s]);
    seqs.slots.push_back(slots.empty() ? static_cast<int64_t>(s) : slots[s]);
    seqs.longest = std::max(seqs.longest, lengths[s]);
  }
  return seqs;
}

}  // namespace ssm
