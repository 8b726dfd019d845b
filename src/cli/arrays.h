// Arrays of numbers that a command reads: double, finite, of a shape the caller knows.
#pragma once

#include <string>

#include "core/files.h"
#include "core/tensor.h"

namespace ssm::cli {

// The array of a .npy file as f64, row-major. Error unless it holds floats or integers, all finite.
Tensor read_numbers(const Path& path);

}  // namespace ssm::cli
