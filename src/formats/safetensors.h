// safetensors, the home format of checkpoints: eight bytes of header length, a JSON header (name -> dtype, shape,
// byte range), then the elements back to back. Reads the six dtypes of core/dtype.h; others (8-bit, bool, complex) and
// more than four dimensions are errors.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/files.h"
#include "core/params.h"

namespace ssm {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

// Tensors are read-only views of the mapped file (a copy only where the file misaligns one). `metadata`, if given,
// receives the strings under __metadata__.
TensorMap read_safetensors(const Path& path, std::map<std::string, std::string>* metadata = nullptr);

// In the given order. The header is padded so that the data, and thus the first tensor, starts on a 64-byte boundary;
// the format allows no gaps, so the rest follow unpadded.
void write_safetensors(const Path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace ssm
