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

Seqs Seqs::singles(const Tensor& device_slots) {
  Seqs seqs = dense(device_slots.count(), 1);
  // Which slots they are, the host does not know; any row of a state is one that exists.
  std::fill(seqs.slots.begin(), seqs.slots.end(), 0);
  seqs.cache(device_slots.device()).tables.slots = device_slots;
  return seqs;
}

Seqs::Cache& Seqs::cache(const Device& device) const {
  if (!cache_ || cache_->device != device)
    cache_ = std::make_shared<Cache>(Cache{.device = device, .tables = {}, .pieces = {}});
  return *cache_;
}

const Seqs::Tables& Seqs::tables(const Device& device) const {
  Tables& all = cache(device).tables;
  if (!all.offsets) all.offsets = Tensor::of(offsets).on(device);
  if (!all.slots) all.slots = Tensor::of(slots).on(device);
  return all;
}

const Tensor& Seqs::pieces(const Device& device, int64_t length) const {
  Tensor& table = cache(device).pieces[length];
  if (table) return table;
  std::vector<int64_t> rows;
  for (int64_t s = 0; s < count(); ++s) {
    const int64_t begin = offsets[static_cast<size_t>(s)], all = this->length(s);
    for (int64_t at = 0; at < all; at += length)
      rows.insert(rows.end(), {s, begin + at, std::min(length, all - at), at / length});
  }
  const auto pieces = static_cast<int64_t>(rows.size()) / 4;
  return table = Tensor::of(std::span<const int64_t>(rows), {pieces, 4}).on(device);
}

}  // namespace ssm
