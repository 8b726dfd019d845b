#include "formats/checkpoint.h"

#include <array>
#include <cstdio>
#include <map>
#include <system_error>

#include "core/error.h"
#include "formats/json.h"
#include "formats/torch_bin.h"
#include "formats/untrusted.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndex = ".index.json";
// The first that exists is read: safetensors before pickles, whole files before shards.
// consolidated.safetensors is what Mistral publishes beside, or instead of, the others.
constexpr std::array<std::string_view, 5> kWeights = {"model.safetensors", "model.safetensors.index.json",
                                                      "pytorch_model.bin", "pytorch_model.bin.index.json",
                                                      "consolidated.safetensors"};
// Readers in Python insist on it.
const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};

bool is_there(const Path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

bool is_folder(const Path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

Path find_weights(const Path& directory) {
  std::string names;
  for (const std::string_view name : kWeights) {
    if (is_there(directory / name)) return directory / name;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  throw Error(directory.string(), " has no weights; looked for ", names);
}

// {"weight_map": {"tensor": "shard file", ...}}; the index decides which shard a tensor is read from.
TensorMap read_shards(const Path& index) {
  const std::string where = index.string();
  constexpr size_t kDeepest = 8;  // "metadata" may hold anything
  const nlohmann::json json = parse_json(read_text(index), where, kDeepest);
  require(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), where,
          " has no weight_map, expected an object of tensor names and files");
  std::map<std::string, std::vector<std::string>> names_by_shard;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    require(shard.is_string(), where, ": the file of tensor ", printable(name), " is no string");
    const auto& file = shard.get_ref<const std::string&>();
    const bool plain = !file.empty() && file != "." && file != ".." &&
                       file.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos && !file.ends_with(kIndex);
    require(plain, where, ": tensor ", printable(name), " is in ", printable(file),
            ", expected the name of a weights file in the same directory");
    names_by_shard[file].push_back(name);
  }
  require(!names_by_shard.empty(), where, ": its weight_map is empty");
  TensorMap tensors;
  for (const auto& [file, names] : names_by_shard) {
    const Path shard = index.parent_path() / file;
    require(is_there(shard), where, " names the shard ", printable(file),
            ", which is not beside it; is the download whole?");
    TensorMap found = read_weights(shard);
    for (const std::string& name : names) {
      const auto tensor = found.find(name);
      require(tensor != found.end(), where, " says that tensor ", printable(name), " is in ", printable(file),
              ", where it is not");
      tensors.insert(*tensor);
    }
  }
  return tensors;
}

}  // namespace

TensorMap read_weights(const Path& weights) {
  const std::string name = weights.filename().string(), kind = weights.extension().string();
  require(kind != ".gguf", weights.string(),
          ": GGUF files cannot be read yet; use the model's model.safetensors or pytorch_model.bin");
  if (name.ends_with(kIndex)) return read_shards(weights);
  if (kind == ".safetensors") return read_safetensors(weights);
  if (kind == ".bin" || kind == ".pt" || kind == ".pth" || kind == ".ckpt") return read_torch_bin(weights);
  throw Error(weights.string(), ": unknown kind of weights file \"", printable(kind),
              "\", expected .safetensors, .bin, .pt, .pth, .ckpt or .index.json");
}

Checkpoint open_checkpoint(const Path& model) {
  require(is_there(model), model.string(), ": no such model; expected a directory or a weights file");
  Checkpoint result;
  const bool directory = is_folder(model);
  result.config_path = (directory ? model : model.parent_path()) / "config.json";
  // A GGUF file carries its config inside, so that is not what it lacks.
  require(is_there(result.config_path) || model.extension() == ".gguf", model.string(), " has no config.json",
          directory ? " in it" : " beside it");
  result.weights = directory ? find_weights(model) : model;
  result.tensors = read_weights(result.weights);
  result.config = read_text(result.config_path);
  return result;
}

void write_checkpoint(const Path& directory, std::string_view config_json, const NamedTensors& tensors) {
  write_file(directory / "config.json", config_json);
  write_safetensors(directory / kWeights[0], tensors, kMetadata);
}

void write_checkpoint(const Path& directory, std::string_view config_json, std::span<const TensorSource> tensors,
                      int64_t shard_bytes) {
  write_file(directory / "config.json", config_json);
  std::vector<size_t> ends;  // of the shards, as positions in `tensors`
  int64_t total = 0, in_shard = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t bytes = tensors[i].shape.count() * bytes_of(tensors[i].dtype);
    if (in_shard > 0 && in_shard > shard_bytes - bytes) {
      ends.push_back(i);
      in_shard = 0;
    }
    in_shard += bytes;
    total += bytes;
  }
  ends.push_back(tensors.size());
  if (ends.size() == 1) return stream_safetensors(directory / kWeights[0], tensors, kMetadata);

  nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                  {"weight_map", nlohmann::ordered_json::object()}};
  size_t begin = 0;
  for (size_t shard = 0; shard < ends.size(); ++shard) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", shard + 1, ends.size());
    const auto part = tensors.subspan(begin, ends[shard] - begin);
    stream_safetensors(directory / name, part, kMetadata);
    for (const TensorSource& tensor : part) index["weight_map"][tensor.name] = name;
    begin = ends[shard];
  }
  write_file(directory / kWeights[1], index.dump(2) + "\n");
}

}  // namespace ssm
