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

StatePool::StatePool(StateSpec spec, int64_t slots, const Device& device)
    : spec_(std::move(spec)), slots_(slots), device_(device) {
  for (const StateEntry& entry : spec_)
    rows_.push_back(
        {Tensor::zeros(with_slots(device.is_cuda() ? slots + 1 : slots, entry.shape), entry.dtype, device), {}});
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
  if (from == to) return;
  for (size_t i = 0; i < spec_.size(); ++i) row(i, to).copy_from(row(i, from));
}

std::vector<std::byte> StatePool::save(Slot slot) const {
  std::vector<std::byte> bytes;
  bytes.reserve(static_cast<size_t>(bytes_of(spec_)));
  for (size_t i = 0; i < spec_.size(); ++i) {
    const Tensor mine = row(i, slot).on(Device::cpu());
    const auto* begin = static_cast<const std::byte*>(mine.raw());
    bytes.insert(bytes.end(), begin, begin + mine.bytes());
  }
  return bytes;
}

void StatePool::restore(Slot slot, std::span<const std::byte> bytes) {
  require(static_cast<int64_t>(bytes.size()) == bytes_of(spec_), "a state of ", bytes.size(),
          " bytes; this model's state has ", bytes_of(spec_));
  const std::byte* from = bytes.data();
  for (size_t i = 0; i < spec_.size(); ++i) {
    const Tensor mine = row(i, slot), saved = Tensor::empty(mine.shape(), mine.dtype());
    std::memcpy(saved.raw(), from, static_cast<size_t>(mine.bytes()));
    mine.copy_from(saved);
    from += mine.bytes();
  }
}

}  // namespace ssm
