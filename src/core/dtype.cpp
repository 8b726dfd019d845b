#include "core/dtype.h"

#include <array>
#include <utility>

namespace ssm {
namespace {
constexpr std::array<std::pair<DType, std::string_view>, 6> kNames = {{{DType::f64, "f64"},
                                                                       {DType::f32, "f32"},
                                                                       {DType::bf16, "bf16"},
                                                                       {DType::f16, "f16"},
                                                                       {DType::i64, "i64"},
                                                                       {DType::i32, "i32"}}};
}  // namespace

int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
  }
  return 0;
}

std::string_view name_of(DType dtype) {
  for (const auto& [key, name] : kNames)
    if (key == dtype) return name;
  return "?";
}

std::optional<DType> dtype_named(std::string_view name) {
  for (const auto& [key, known] : kNames)
    if (known == name) return key;
  return std::nullopt;
}

bool is_float(DType dtype) { return dtype != DType::i64 && dtype != DType::i32; }

F16::F16(float value) {
  const auto word = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((word >> 16) & 0x8000u);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    bits = static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));  // NaN
  } else if (magnitude >= 0x477ff000u) {                                          // 65520 and more round to infinity
    bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; adding 0.5 lines the mantissa up and rounds
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  } else {
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    bits = static_cast<uint16_t>(sign | (rounded >> 13));
  }
}

F16::operator float() const {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x400u) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(subnormal));
}

}  // namespace ssm
