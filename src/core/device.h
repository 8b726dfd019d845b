// Where an op runs. `ref` is the plain loops that define every op, in f32 or f64; `cpu` is SIMD and threads; `cuda` is
// one GPU. ref and cpu share the host's memory, each GPU has its own.
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
  static Device cuda(int index = 0) { return {Kind::cuda, index}; }
  // auto | cpu | cuda | cuda:N | ref; auto: the first GPU, else cpu. Throws Error with the choices, or with the reason
  // why there is no such GPU.
  static Device named(std::string_view name);
  bool is_ref() const { return kind == Kind::ref; }
  bool is_cuda() const { return kind == Kind::cuda; }
  bool operator==(const Device&) const = default;
};

std::string name_of(const Device& device);

}  // namespace ssm
