// A model on disk: config.json and its weights, as published. Reads a directory (model.safetensors, or
// pytorch_model.bin, or the index of either with its shards) or one weights file with config.json beside it; writes
// config.json and model.safetensors, sharded if it is to be. What the config says is for models/ to know.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/files.h"
#include "core/params.h"
#include "formats/safetensors.h"

namespace ssm {

struct Checkpoint {
  Path config_path;
  std::string config;  // text of config.json
  TensorMap tensors;   // read-only views of mapped files
  Path weights;        // the file or index they came from
};

Checkpoint open_checkpoint(const Path& model);

// The tensors of one weights file or index, without a config.
TensorMap read_weights(const Path& weights);

// Fills an existing directory; callers wrap it in write_directory, so that it appears whole.
void write_checkpoint(const Path& directory, std::string_view config_json, const NamedTensors& tensors);
// In files of at most `shard_bytes` of tensors (more only where one tensor has more), with an index if it takes
// several.
void write_checkpoint(const Path& directory, std::string_view config_json, std::span<const TensorSource> tensors,
                      int64_t shard_bytes);

}  // namespace ssm
