#include "cli/model_flags.h"

#include <filesystem>

namespace ssm::cli {

ModelOptions model_options(const CommonOptions& common) {
  return {.device = common.device_kind(), .dtype = common.dtype_kind()};
}

DType stored_dtype(const Checkpoint& checkpoint) {
  const auto embedding = checkpoint.tensors.find("backbone.embedding.weight");
  const DType dtype = embedding == checkpoint.tensors.end() ? DType::f32 : embedding->second.dtype();
  return dtype == DType::bf16 || dtype == DType::f16 ? dtype : DType::f32;
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
