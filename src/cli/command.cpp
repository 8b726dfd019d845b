#include "cli/command.h"

#include <algorithm>
#include <string>

namespace ssm::cli {

std::string flag_of(std::string_view field) {
  std::string flag = "--" + std::string(field);
  std::replace(flag.begin() + 2, flag.end(), '_', '-');
  return flag;
}

Fields CommonOptions::fields() {
  return {
      {"device", &device, "auto, cpu, cuda, cuda:N, or ref (the plain definition of every operation; slow)"},
      {"dtype", &dtype, "of the weights: auto (as stored; training and ref: f32), f32, bf16, f16; f64 with ref"},
      {"tf32", &tf32, "products of f32 on a GPU's tensor cores, in TF32: 10 bits of mantissa, several times as fast"},
      {"threads", &threads, "threads to use; 0: one a core"},
      {"seed", &seed, "of everything random"},
      {"json", &json, "results as JSON, nothing else on stdout"},
      {"quiet", &quiet, "no progress and no notes on stderr"}};
}

Device CommonOptions::device_kind() const {
  const bool known = device == "auto" || device == "cpu" || device == "ref" || device.starts_with("cuda");
  require_usage(known, "--device is \"", device, "\", expected auto, cpu, cuda, cuda:N or ref");
  return Device::named(device);
}

std::optional<DType> CommonOptions::dtype_kind() const {
  if (dtype == "auto") return std::nullopt;
  const auto found = dtype_named(dtype);
  require_usage(found && is_float(*found), "--dtype is \"", dtype, "\", expected f32, bf16, f16, f64 or auto");
  return found;
}

void require_range(std::string_view flag, int64_t value, int64_t low, int64_t high) {
  if (high == INT64_MAX)
    require_usage(value >= low, flag, " is ", value, ", expected at least ", low);
  else
    require_usage(low <= value && value <= high, flag, " is ", value, ", expected ", low, " to ", high);
}

void require_range(std::string_view flag, double value, double low, double high) {
  require_usage(low <= value && value <= high, flag, " is ", value, ", expected ", low, " to ", high);
}

}  // namespace ssm::cli
