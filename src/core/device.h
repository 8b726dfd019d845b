// Where an op runs. `ref` is the plain loops that define every op, in f32 or f64; `cpu` is SIMD and threads.
#pragma once

#include <string>
#include <string_view>

namespace ssm {

#ifdef SSM_CUDA
inline constexpr bool kHasCuda = true;
#else
inline constexpr bool kHasCuda = false;
#endif

struct Device {
  enum class Kind { ref, cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;  // which GPU

  static Device ref() { return {Kind::ref, 0}; }
  static Device cpu() { return {Kind::cpu, 0}; }
  static Device named(std::string_view name);  // auto | cpu | cuda | cuda:N | ref; throws Error with the choices
  bool is_ref() const { return kind == Kind::ref; }
  bool operator==(const Device&) const = default;
};

std::string name_of(const Device& device);

}  // namespace ssm
