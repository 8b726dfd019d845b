// PyTorch's own files (pytorch_model.bin, .pt, .pth), as torch.save of 1.6 and later writes them: a zip archive with a
// pickle that describes the tensors and one stored member a storage. Nothing in the file is ever run: the pickle is
// read as data (formats/pickle.h). Reads a state dict, or a dict that holds one under a key such as "state_dict" or
// "model"; values that are no tensors are skipped. Files from before 1.6, TorchScript and whole pickled modules are
// errors.
#pragma once

#include "core/files.h"
#include "core/params.h"

namespace ssm {

// Tensors are read-only views of the mapped file, with the strides and shared storages they were saved with, on the
// host whatever device they came from.
TensorMap read_torch_bin(const Path& path);

}  // namespace ssm
