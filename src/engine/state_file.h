// A sequence on disk (`--state-out`, `--state-in`): a safetensors file with the state's entries under their names, the
// last output, the ids seen, and metadata that binds it to the model that made it. README.md specifies it.
#pragma once

#include <string>

#include "core/files.h"
#include "engine/sequence.h"
#include "models/model.h"

namespace ssm {

// What a state file says of the model that it belongs to: hashes of its config and of a sample of its weights, and its
// dtype. Found once by those who save often; training a model changes it.
struct ModelIdentity {
  explicit ModelIdentity(const Model& model);
  std::string config, weights, dtype;
};

// Appears whole or not at all.
void write_state_file(const Path& path, const Model& model, const ModelIdentity& identity, const Snapshot& snapshot);
void write_state_file(const Path& path, const Model& model, const Snapshot& snapshot);

// Throws Error with the reason unless the file was written by this version for a model with the same config, weights
// and dtype, and is unchanged since.
Snapshot read_state_file(const Path& path, const Model& model, const ModelIdentity& identity);
Snapshot read_state_file(const Path& path, const Model& model);

}  // namespace ssm
