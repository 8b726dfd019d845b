// NumPy's .npy arrays, format versions 1 to 3: a Python dict literal that says dtype, order and shape, then the
// elements. Reads little-endian f2, f4, f8 and the integers of 8 to 64 bits, up to four dimensions; booleans, complex,
// strings, objects, records and big-endian numbers are errors.
#pragma once

#include <cstdint>

#include "core/files.h"
#include "core/tensor.h"

namespace ssm {

// A row-major copy, whichever order the file has. Integers of every width become i64; floats keep theirs.
Tensor read_npy(const Path& path);

// f64, f32, f16, i64 and i32 as they are; bf16, which NumPy does not have, as f32.
void write_npy(const Path& path, const Tensor& tensor);

// Token ids: integers of any width, (t) or (s, t), each from 0 to vocab - 1; as i64.
Tensor read_ids(const Path& path, int64_t vocab);

}  // namespace ssm
