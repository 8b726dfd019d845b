#include "core/state.h"

#include <algorithm>
#include <cstring>

namespace ssm {
namespace {

Shape with_rows(std::initializer_list<int64_t> rows, const Shape& shape) {
  std::vector<int64_t> sizes = rows;
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  return Shape(sizes);
}

// All tokens of one slot: (capacity, shape).
Tensor tokens_of_slot(const Tensor& entry, int64_t slot) {
  const std::vector<int64_t> sizes(entry.shape().begin() + 1, entry.shape().end());
  return entry.rows(slot, slot + 1).reshape(Shape(sizes));
}

}  // namespace

int64_t bytes_of(const StateSpec& spec, int64_t tokens) {
  int64_t bytes = 0;
  for (const StateEntry& entry : spec)
    bytes += (entry.per_token ? tokens : 1) * entry.shape.count() * bytes_of(entry.dtype);
  return bytes;
}

std::vector<int64_t> token_counts(const Tensor& counts, const Seqs& seqs) {
  std::vector<int64_t> result(static_cast<size_t>(seqs.count()), 0);
  if (!counts) return result;
  for (size_t s = 0; s < result.size(); ++s) {
    const int64_t slot = seqs.slots[s];
    require(0 <= slot && slot < counts.count(), "slot ", slot, " of a state with ", counts.count(), " slots");
    result[s] = counts.data<int64_t>()[slot];
  }
  return result;
}

void advance_counts(const Ctx& ctx, Var& counts, const Seqs& seqs) {
  if (ctx.tape) counts = {counts.value.clone(), {}};
  for (int64_t s = 0; s < seqs.count(); ++s)
    counts.value.data<int64_t>()[seqs.slots[static_cast<size_t>(s)]] += seqs.length(s);
}

void make_room(Var& entry, int64_t tokens) {
  constexpr int64_t kFirst = 64;  // a few KB a layer: the first doublings are not worth their copies
  const Tensor old = entry.value;
  const int64_t capacity = old.size(1);
  if (tokens <= capacity) return;
  Shape shape = old.shape();
  shape[1] = std::max({tokens, 2 * capacity, kFirst});
  entry = {Tensor::empty(shape, old.dtype(), old.device()), {}};
  if (capacity == 0) return;
  for (int64_t slot = 0; slot < shape[0]; ++slot)
    tokens_of_slot(entry.value, slot).rows(0, capacity).copy_from(tokens_of_slot(old, slot));
}

StateSpec spec_of_saved(const StateSpec& spec, std::span<const std::byte> saved) {
  StateSpec result = spec;
  const auto size = static_cast<int64_t>(saved.size());
  int64_t at = 0, tokens = 0;
  for (StateEntry& entry : result) {
    int64_t bytes = entry.shape.count() * bytes_of(entry.dtype);
    const int64_t room = size - at;
    if (entry.per_token) {
      require(0 <= tokens && tokens <= room / std::max<int64_t>(bytes, 1), "a state of ", size, " bytes says that ",
              entry.name, " has ", tokens, " tokens of ", bytes, " bytes; it has room for ",
              room / std::max<int64_t>(bytes, 1));
      bytes *= tokens;
      entry.shape = with_rows({tokens}, entry.shape);
    }
    require(bytes <= room, "a state of ", size, " bytes; this model's state has at least ", bytes_of(spec));
    if (entry.dtype == DType::i64 && bytes == bytes_of(DType::i64))
      std::memcpy(&tokens, saved.data() + at, sizeof tokens);
    at += bytes;
  }
  require(at == size, "a state of ", size, " bytes; this model's state has ", at);
  return result;
}

StatePool::StatePool(StateSpec spec, int64_t slots, const Device& device)
    : spec_(std::move(spec)), slots_(slots), device_(device) {
  const int64_t rows = device.is_cuda() ? slots + 1 : slots;
  for (size_t i = 0; i < spec_.size(); ++i) {
    const StateEntry& entry = spec_[i];
    DCHECK(!entry.per_token || (i > 0 && spec_[i - 1].dtype == DType::i64 && spec_[i - 1].shape == Shape{1}));
    const Shape shape = entry.per_token ? with_rows({rows, 0}, entry.shape) : with_rows({rows}, entry.shape);
    rows_.push_back({Tensor::zeros(shape, entry.dtype, entry.dtype == DType::i64 ? Device::cpu() : device), {}});
  }
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
  if (!spec_[entry].per_token) return rows_[entry].value.rows(slot, slot + 1);
  const int64_t tokens = row(entry - 1, slot).item<int64_t>();
  return tokens_of_slot(rows_[entry].value, slot).rows(0, tokens);
}

// Of an entry per token the count alone: rows beyond it are never read.
void StatePool::zero(Slot slot) {
  for (size_t i = 0; i < spec_.size(); ++i)
    if (!spec_[i].per_token) row(i, slot).fill_zero();
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
  const std::byte* from = bytes.data();
  const StateSpec found = spec_of_saved(spec_, bytes);
  for (size_t i = 0; i < spec_.size(); ++i) {
    if (spec_[i].per_token) make_room(rows_[i], found[i].shape[0]);
    const Tensor mine = row(i, slot), saved = Tensor::empty(mine.shape(), mine.dtype());
    std::memcpy(saved.raw(), from, static_cast<size_t>(mine.bytes()));
    mine.copy_from(saved);
    from += mine.bytes();
  }
}

}  // namespace ssm
