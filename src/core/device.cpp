#include "core/device.h"

#include <charconv>

#include "core/cuda.h"
#include "core/error.h"

namespace ssm {

Device Device::named(std::string_view name) {
  if (name == "cpu") return cpu();
  if (name == "ref") return ref();
  if constexpr (kHasCuda) {
    if (name == "auto") return cuda::device_count() > 0 ? Device::cuda() : cpu();
    int index = 0;
    const std::string_view digits = name.starts_with("cuda:") ? name.substr(5) : "0";
    const auto [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    const bool number = problem == std::errc() && end == digits.data() + digits.size() && index >= 0;
    if ((name == "cuda" || name.starts_with("cuda:")) && number) {
      const int count = cuda::device_count();
      require(count > 0, "--device ", name, ": ", cuda::why_no_device(), "; use --device cpu");
      require(index < count, "--device ", name, ": this machine has ", count, count == 1 ? " GPU" : " GPUs",
              ", numbered from 0");
      return Device::cuda(index);
    }
  } else {
    if (name == "auto") return cpu();
    require(name != "cuda" && !name.starts_with("cuda:"), "--device ", name,
            ": this program was built without CUDA; use --device cpu");
  }
  throw Error("--device ", name, " is not known; expected auto, cpu, cuda, cuda:N or ref");
}

std::string name_of(const Device& device) {
  switch (device.kind) {
    case Device::Kind::ref: return "ref";
    case Device::Kind::cpu: return "cpu";
    case Device::Kind::cuda: return "cuda:" + std::to_string(device.index);
  }
  return "?";
}

}  // namespace ssm
