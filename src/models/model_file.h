// A model on disk as the house sees it: its config translated into ours, its tensors under our names, both checked
// against each other before anything is allocated. And the way back: a directory in either home's spelling.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "formats/checkpoint.h"
#include "formats/tensor_names.h"
#include "models/model_config.h"

namespace ssm {

struct ModelFile {
  Path weights, config_path;             // weights: the file or index
  Naming naming = Naming::state_spaces;  // the kind of config.json
  std::string config_json;               // its text
  ModelConfig config;
  TensorMap tensors;                             // by our names, each once; read-only views of mapped files
  std::map<std::string, std::string> published;  // our name -> the file's
  DType dtype = DType::f32;                      // of most of the bytes, where it is f32, bf16 or f16

  // A checkpoint as published (formats/checkpoint.h), or a run, which stands for its newest checkpoint. Throws Error on
  // tensors that are missing, strange or of another shape than the config's.
  static ModelFile open(const Path& path);
};

// What a MODEL on the command line means: the directory of a training run is the checkpoint its file `latest` names, a
// repository in a Hugging Face cache is the snapshot its refs/main names, anything else is itself.
Path resolve_model(const Path& path);

struct WriteModel {
  std::optional<DType> dtype;  // of the weights that need not stay f32; none: every tensor as stored
  Naming naming = Naming::state_spaces;
  int64_t shard_bytes = INT64_MAX;  // the largest file, unless one tensor is larger
};

// What write_model writes: config.json, and the weights in the order a token meets them.
std::string config_of(const ModelFile& file, const WriteModel& options);
std::vector<TensorSource> weights_of(const ModelFile& file, const WriteModel& options);

// Fills an existing directory with config.json and safetensors, one tensor at a time: memory is that of the largest.
void write_model(const Path& directory, const ModelFile& file, const WriteModel& options);
// The same with the initial values of a config and seed.
void write_new_model(const Path& directory, const ModelConfig& config, uint64_t seed, const WriteModel& options);

}  // namespace ssm
