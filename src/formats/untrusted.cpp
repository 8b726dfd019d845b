#include "formats/untrusted.h"

#include <algorithm>

#include "core/error.h"
#include "core/memory.h"

namespace ssm {

void ByteReader::seek(uint64_t position) {
  require(position <= bytes_.size(), where_, ": points at byte ", position, " of ", bytes_.size(),
          "; the file is truncated or damaged");
  position_ = position;
}

std::span<const std::byte> ByteReader::take(uint64_t count) {
  require(count <= left(), where_, ": needs ", count, " bytes at byte ", position_, ", found ", left(),
          "; the file is truncated or damaged");
  const auto taken = bytes_.subspan(position_, count);
  position_ += count;
  return taken;
}

std::string_view ByteReader::text(uint64_t count) {
  const auto taken = take(count);
  return {reinterpret_cast<const char*>(taken.data()), taken.size()};
}

std::string_view ByteReader::line() {
  const auto rest = bytes_.subspan(position_);
  const auto end = std::find(rest.begin(), rest.end(), std::byte{'\n'});
  require(end != rest.end(), where_, ": a line has no end; the file is truncated or damaged");
  const std::string_view result = text(static_cast<uint64_t>(end - rest.begin()));
  ++position_;
  return result;
}

std::optional<int64_t> checked_bytes(std::span<const int64_t> sizes, DType dtype) {
  int64_t bytes = bytes_of(dtype);
  bool empty = false;
  for (const int64_t size : sizes) {
    empty = empty || size == 0;
    if (size < 0 || __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes)) return std::nullopt;
  }
  return empty ? 0 : bytes;
}

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 100;
  std::string result(text.substr(0, kLongest));
  for (char& sign : result)
    if (sign < 0x20 || sign > 0x7e) sign = '?';
  return text.size() > kLongest ? result + "..." : result;
}

std::string printable(std::span<const int64_t> sizes) {
  constexpr size_t kMost = 8;
  std::string result = "(";
  for (size_t i = 0; i < std::min(sizes.size(), kMost); ++i) result += (i ? ", " : "") + std::to_string(sizes[i]);
  return result + (sizes.size() > kMost ? ", ...)" : ")");
}

std::shared_ptr<void> aligned_memory(const std::shared_ptr<MappedFile>& file, std::span<const std::byte> bytes,
                                     int64_t width) {
  if (reinterpret_cast<uintptr_t>(bytes.data()) % static_cast<uint64_t>(width) == 0)
    return {file, const_cast<std::byte*>(bytes.data())};  // a tensor has no read-only form
  std::shared_ptr<std::byte> copy = allocate_bytes(static_cast<int64_t>(bytes.size()));
  if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
  return copy;
}

}  // namespace ssm
