// Opening: names first, then shapes, all before a byte of a tensor is read. Writing: tensor by tensor.
#include "models/model_file.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <system_error>

#include "core/error.h"
#include "formats/untrusted.h"
#include "models/huggingface.h"
#include "models/language_model.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

constexpr const char *kEmbedding = "backbone.embedding.weight", *kHead = "lm_head.weight";
constexpr std::string_view kLayers = "backbone.layers.";

bool is_file(const Path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool is_folder(const Path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

// A name written in a file, which must be that of a directory in `parent`.
Path directory_named_by(const Path& file, const Path& parent, std::string_view what, std::string_view expected) {
  std::string name = read_text(file);
  while (!name.empty() && (name.back() == '\n' || name.back() == '\r')) name.pop_back();
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find_first_of(std::string_view("/\0", 2)) == std::string::npos;
  require(plain && is_folder(parent / name), file.string(), " names no ", what, " in ", parent.string(), ", expected ",
          expected);
  return parent / name;
}

bool same_values(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  if (a.raw() == b.raw()) return true;
  const Tensor x = a.contiguous() ? a : a.clone(), y = b.contiguous() ? b : b.clone();
  return std::memcmp(x.raw(), y.raw(), static_cast<size_t>(x.bytes())) == 0;
}

void take_tensors(ModelFile& file, TensorMap tensors) {
  for (auto& [name, tensor] : tensors) {
    const std::string ours = house_name(name);
    const auto [place, is_new] = file.tensors.emplace(ours, tensor);
    if (is_new)
      file.published[ours] = name;
    else
      require(same_values(place->second, tensor), file.weights.string(), " has ", printable(file.published[ours]),
              " and ", printable(name), ", which are one tensor under two names, with different values");
  }
}

// A tied head stored a second time goes. Where config and weights disagree, transformers believes the weights: two
// different tables are not tied, and a head without an embedding is the embedding.
void settle_head(ModelFile& file) {
  if (!file.config.tie_embeddings) return;
  const auto head = file.tensors.find(kHead), embedding = file.tensors.find(kEmbedding);
  if (head == file.tensors.end()) return;
  if (embedding == file.tensors.end()) {
    file.tensors[kEmbedding] = head->second;
    file.published[kEmbedding] = file.published[kHead];
  } else if (!same_values(head->second, embedding->second)) {
    require(file.naming == Naming::huggingface, file.weights.string(), ": ", file.published[kHead], " differs from ",
            file.published[kEmbedding],
            ", yet tie_embeddings in config.json says they are one; expected equal tensors, "
            "or tie_embeddings false");
    file.config.tie_embeddings = false;
    return;
  }
  file.tensors.erase(kHead);
}

// One more than the largest layer number in the names.
int64_t layers_in(const TensorMap& tensors) {
  int64_t layers = 0;
  for (auto at = tensors.lower_bound(std::string(kLayers)); at != tensors.end() && at->first.starts_with(kLayers);
       ++at) {
    const char* const begin = at->first.data() + kLayers.size();
    int64_t number = -1;
    const auto [end, problem] = std::from_chars(begin, at->first.data() + at->first.size(), number);
    if (problem == std::errc{} && *end == '.') layers = std::max(layers, std::min(number, int64_t{1} << 30) + 1);
  }
  return layers;
}

std::string nearest_in(const ModelFile& file, const std::string& name) {
  constexpr size_t kLongest = 200, kMost = 20000;  // likeness costs the product of the lengths
  std::vector<std::string> found;
  for (const auto& [ours, published] : file.published)
    if (published.size() < kLongest && found.size() < kMost) found.push_back(published);
  const std::string near = nearest(name, found);
  return !near.empty() ? near : found.empty() ? "nothing" : found.front();
}

void check_tensors(const ModelFile& file) {
  const std::string where = file.weights.string(), config = file.config_path.filename().string();
  const int64_t layers = layers_in(file.tensors);
  require(layers == 0 || file.config.n_layer <= layers, where, " has no tensor of layer ", layers, ": it holds ",
          layers, " layers, ", config, " says ", file.config.n_layer);
  ParamStore declared({.shapes_only = true});
  const LanguageModel shapes(declared, file.config);
  for (const auto& param : declared.all()) {
    const auto known = file.published.find(param->name);
    const std::string name = known == file.published.end() ? published_name(param->name, file.naming) : known->second;
    const auto found = file.tensors.find(param->name);
    const Shape expected = param->var.value.shape();
    if (found == file.tensors.end())  // likeness costs too much to be looked for in vain
      throw Error(where, " has no tensor ", name, " ", expected, ", which ", config,
                  " asks for; the nearest it has is ", printable(nearest_in(file, name)));
    require(found->second.shape() == expected, where, ": ", name, " is ", found->second.shape(), ", config says ",
            expected);
    require(is_float(found->second.dtype()), where, ": ", name, " holds ", name_of(found->second.dtype()),
            ", expected floating point");
  }
  for (const auto& [ours, tensor] : file.tensors)
    require(declared.find(ours), where, ": tensor ", printable(file.published.at(ours)), " ", tensor.shape(),
            " belongs to no part of the model that ", config, " describes; is this its ", config, "?");
}

DType most_common_dtype(const TensorMap& tensors) {
  std::map<DType, int64_t> bytes;
  for (const auto& [name, tensor] : tensors) bytes[tensor.dtype()] += tensor.bytes();
  DType most = DType::f32;
  for (const auto& [dtype, count] : bytes)
    if (count > bytes[most]) most = dtype;
  return most == DType::bf16 || most == DType::f16 ? most : DType::f32;
}

DType written_dtype(const Param& param, DType dtype) {
  return param.flags.keep_f32 && dtype != DType::f64 ? DType::f32 : dtype;
}

}  // namespace

Path resolve_model(const Path& path) {
  if (is_file(path / "latest"))
    return directory_named_by(path / "latest", path, "checkpoint", "the name of a directory, step-N");
  const Path snapshots = path / "snapshots", main = path / "refs" / "main";
  if (!is_folder(snapshots)) return path;
  require(is_file(main), path.string(),
          " is a repository in a cache without refs/main; expected one of the directories "
          "in ",
          snapshots.string());
  return directory_named_by(main, snapshots, "snapshot", "the name of a directory; is the download whole?");
}

ModelFile ModelFile::open(const Path& path) {
  Checkpoint checkpoint = open_checkpoint(resolve_model(path));
  ModelFile file;
  file.weights = checkpoint.weights;
  file.config_path = checkpoint.config_path;
  file.config_json = std::move(checkpoint.config);
  const std::string where = file.config_path.string();
  file.naming = is_huggingface(file.config_json, where) ? Naming::huggingface : Naming::state_spaces;
  file.config = ModelConfig::from_json(file.config_json, where);
  const Path generation = file.config_path.parent_path() / "generation_config.json";
  if (is_file(generation)) file.config.eos_token_id = end_of_text_in(read_text(generation), generation.string());
  take_tensors(file, std::move(checkpoint.tensors));
  settle_head(file);
  check_tensors(file);
  file.dtype = most_common_dtype(file.tensors);
  return file;
}

std::vector<TensorSource> weights_of(const ModelFile& file, const WriteModel& options) {
  ParamStore declared({.shapes_only = true});
  const LanguageModel shapes(declared, file.config);
  std::vector<TensorSource> sources;
  for (const auto& param : declared.all()) {
    const Tensor stored = file.tensors.at(param->name);
    const DType dtype = options.dtype ? written_dtype(*param, *options.dtype) : stored.dtype();
    sources.push_back({published_name(param->name, options.naming), dtype, stored.shape(),
                       [stored, dtype] { return stored.to(dtype); }});
  }
  return sources;
}

std::string config_of(const ModelFile& file, const WriteModel& options) {
  if (options.naming == Naming::state_spaces) return file.config.json();
  if (file.naming == Naming::state_spaces) return to_huggingface(file.config, options.dtype.value_or(file.dtype));
  // Nothing changes, or the dtype alone.
  return options.dtype ? to_huggingface(file.config, *options.dtype, file.config_json) : file.config_json;
}

void write_model(const Path& directory, const ModelFile& file, const WriteModel& options) {
  write_checkpoint(directory, config_of(file, options), weights_of(file, options), options.shard_bytes);
}

void write_new_model(const Path& directory, const ModelConfig& config, uint64_t seed, const WriteModel& options) {
  const DType dtype = options.dtype.value_or(DType::f32);
  ParamStore declared({.dtype = dtype, .seed = seed, .shapes_only = true});
  const LanguageModel shapes(declared, config);
  std::vector<TensorSource> sources;
  for (const auto& param : declared.all()) {
    const Tensor& value = param->var.value;
    sources.push_back({published_name(param->name, options.naming), value.dtype(), value.shape(),
                       [&declared, at = param.get()] { return declared.initial_value(*at).to(at->var.value.dtype()); }});
  }
  const std::string json = options.naming == Naming::huggingface ? to_huggingface(config, dtype) : config.json();
  write_checkpoint(directory, json, sources, options.shard_bytes);
}

}  // namespace ssm
