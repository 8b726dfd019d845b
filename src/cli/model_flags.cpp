#include "cli/model_flags.h"

#include <filesystem>

namespace ssm::cli {

ModelOptions model_options(const CommonOptions& common) {
  const auto dtype = common.dtype_kind();
  const Device device = common.device_kind();
  return {.device = device, .dtype = dtype.value_or(DType::f32), .as_stored = !dtype && !device.is_ref()};
}

void require_can_write(const Path& file) {
  std::error_code ignored;
  const bool there = std::filesystem::exists(file, ignored);
  // Files appear by renaming: a device would be replaced by one.
  require(!there || std::filesystem::is_regular_file(file, ignored), "cannot write ", file.string(),
          ": it is a directory or a device, expected the name of a file");
  const FileWriter probe(file);
}

}  // namespace ssm::cli
