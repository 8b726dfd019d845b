#include "core/device.h"

#include "core/error.h"

namespace ssm {

Device Device::named(std::string_view name) {
  if (name == "auto" || name == "cpu") return cpu();
  if (name == "ref") return ref();
  require(name != "cuda" && !name.starts_with("cuda:"), "--device ", name,
          ": this program was built without CUDA; use --device cpu");
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
