// A .npy array of f32 that is written a block of rows at a time, for results larger than memory. It appears whole.
#pragma once

#include "core/files.h"
#include "core/tensor.h"

namespace ssm::cli {

class NpyRows {
 public:
  NpyRows(const Path& path, const Shape& shape);
  void write(const Tensor& rows);  // f32, contiguous: the next elements in order
  void commit();                   // all elements must be there

 private:
  FileWriter file_;
  int64_t missing_;  // elements
};

}  // namespace ssm::cli
