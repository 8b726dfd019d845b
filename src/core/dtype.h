// Element types. bf16 and f16 are storage types: arithmetic happens in f32 (and in the matrix units of a GPU, which sum
// in f32). f64 is known to Device::ref alone.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ssm {

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32 };

int64_t bytes_of(DType dtype);
std::string_view name_of(DType dtype);                    // "f32"
std::optional<DType> dtype_named(std::string_view name);  // the inverse
bool is_float(DType dtype);
// What sums, states and statistics of such elements are kept in: f64 for f64, else f32.
constexpr DType accumulator_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// bfloat16: the upper half of a float; rounding to nearest even, NaN stays NaN.
struct BF16 {
  uint16_t bits = 0;
  BF16() = default;
  explicit BF16(float value) {
    const auto word = std::bit_cast<uint32_t>(value);
    const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(nan ? (word >> 16) | 0x40u : (word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// IEEE 754 half precision; rounding to nearest even, subnormals kept.
struct F16 {
  uint16_t bits = 0;
  F16() = default;
  explicit F16(float value);
  explicit operator float() const;
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<F16> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};

}  // namespace ssm
