// safetensors, the home format of checkpoints: eight bytes of header length, a JSON header (name -> dtype, shape,
// byte range), then the elements back to back. Reads the six dtypes of core/dtype.h; others (8-bit, bool, complex) and
// more than four dimensions are errors.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/files.h"
#include "core/params.h"

namespace ssm {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// A tensor that is made when it is written and forgotten after, so that a model need not fit into memory.
struct TensorSource {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::function<Tensor()> make;
};

// Tensors are read-only views of the mapped file (a copy only where the file misaligns one). `metadata`, if given,
// receives the strings under __metadata__.
TensorMap read_safetensors(const Path& path, std::map<std::string, std::string>* metadata = nullptr);

// In the given order. The header is padded so that the data, and thus the first tensor, starts on a 64-byte boundary;
// the format allows no gaps, so the rest follow unpadded.
void stream_safetensors(const Path& path, std::span<const TensorSource> tensors,
                        const std::map<std::string, std::string>& metadata = {});
void write_safetensors(const Path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace ssm
