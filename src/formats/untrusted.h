// What every reader of a foreign file needs, because nobody vouches for its bytes: reads that stop at the end, sizes
// that cannot overflow, names that are safe to print, tensors over mapped bytes whatever their alignment. All numbers
// are little-endian, as is every machine this runs on.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/files.h"
#include "core/tensor.h"

namespace ssm {

static_assert(std::endian::native == std::endian::little, "files are read without swapping bytes");

// A position in unchecked bytes. Reading past the end throws Error, which opens with `where`.
class ByteReader {
 public:
  ByteReader(std::span<const std::byte> bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}
  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }
  void seek(uint64_t position);
  std::span<const std::byte> take(uint64_t count);
  std::string_view text(uint64_t count);
  std::string_view line();  // up to a newline, which is consumed but not returned
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  std::string where_;
  size_t position_ = 0;
};

// Bytes of a tensor, or nothing if a size is negative or the product of the sizes leaves 64 bits even with its zeros
// left out (shapes and strides are later multiplied in any order).
std::optional<int64_t> checked_bytes(std::span<const int64_t> sizes, DType dtype);

// For error messages: one line of ASCII, cut after 100 characters.
std::string printable(std::string_view text);
std::string printable(std::span<const int64_t> sizes);  // (2, 3)

// Mapped bytes as memory for elements of `width` bytes: themselves, kept alive by `file`, or a copy if their address is
// no multiple of the width. Points at the first byte, never null. Writing to mapped bytes ends the program.
std::shared_ptr<void> aligned_memory(const std::shared_ptr<MappedFile>& file, std::span<const std::byte> bytes,
                                     int64_t width);

}  // namespace ssm
