#include "core/state.h"

#include <algorithm>
#include <cstring>

namespace ssm {
namespace {

Shape with_slots(int64_t slots, const Shape& shape) {
  std::vector<int64_t> sizes = {slots};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  return Shape(sizes);
}

}  // namespace

int64_t bytes_of(const StateSpec& spec) {
  int64_t bytes = 0;
  for (const StateEntry& entry : spec) bytes += entry.shape.count() * bytes_of(entry.dtype);
  return bytes;
}

StatePool::StatePool(StateSpec spec, int64_t slots) : spec_(std::move(spec)), slots_(slots) {
  for (const StateEntry& entry : spec_)
    rows_.push_back({Tensor::zeros(with_slots(slots, entry.shape), entry.dtype), {}});
  for (Slot slot = slots; slot-- > 0;) free_.push_back(slot);
}

StatePool::Slot StatePool::acquire() {
  require(!free_.empty(), "all ", slots_, " state slots are in use");
  const Slot slot = free_.back();
  free_.pop_back();
  zero(slot);
  return slot;
}

void StatePool::release(Slot slot) {
  DCHECK(std::find(free_.begin(), free_.end(), slot) == free_.end());
  free_.push_back(slot);
}

Tensor StatePool::row(size_t entry, Slot slot) const {
  DCHECK(0 <= slot && slot < slots_);
  return rows_[entry].value.rows(slot, slot + 1);
}

void StatePool::zero(Slot slot) {
  for (size_t i = 0; i < spec_.size(); ++i) row(i, slot).fill_zero();
}

void StatePool::copy(Slot from, Slot to) {
  for (size_t i = 0; i < spec_.size(); ++i) row(i, to).copy_from(row(i, from));
}

std::vector<std::byte> StatePool::save(Slot slot) const {
  std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(spec_)));
  std::byte* to = bytes.data();
  for (size_t i = 0; i < spec_.size(); ++i) {
    const Tensor from = row(i, slot);
    std::memcpy(to, from.raw(), static_cast<size_t>(from.bytes()));
    to += from.bytes();
  }
  return bytes;
}

void StatePool::restore(Slot slot, std::span<const std::byte> bytes) {
  require(static_cast<int64_t>(bytes.size()) == bytes_of(spec_), "a state of ", bytes.size(),
          " bytes; this model's state has ", bytes_of(spec_));
  const std::byte* from = bytes.data();
  for (size_t i = 0; i < spec_.size(); ++i) {
    const Tensor to = row(i, slot);
    std::memcpy(to.raw(), from, static_cast<size_t>(to.bytes()));
    from += to.bytes();
  }
}

}  // namespace ssm
