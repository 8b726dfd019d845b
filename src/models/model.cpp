// Opening, creating and saving models.
#include "models/model.h"

#include "core/error.h"
#include "formats/checkpoint.h"

namespace ssm {
namespace {

void check(const ModelOptions& options) {
  require(is_float(options.dtype), "--dtype ", name_of(options.dtype), ": expected f32, bf16 or f16 (or f64 with ref)");
  const bool known = options.device.is_ref() ? options.dtype == DType::f32 || options.dtype == DType::f64
                                             : options.dtype != DType::f64;
  require(known, "--dtype ", name_of(options.dtype), " with --device ", name_of(options.device),
          ": ref takes f32 and f64, the other devices f32, bf16 and f16");
  require(!options.trainable || options.dtype == DType::f32 || options.dtype == DType::f64, "--dtype ",
          name_of(options.dtype), ": training on this device is in f32");
}

}  // namespace

std::unique_ptr<Model> Model::open(const Path& path, const ModelOptions& options) {
  check(options);
  const Checkpoint checkpoint = open_checkpoint(resolve_model(path));
  const ModelConfig config = ModelConfig::from_json(checkpoint.config, checkpoint.config_path.string());
  std::unique_ptr<Model> model(new Model);
  model->options_ = options;
  model->params_ = std::make_unique<ParamStore>(
      ParamStore::Options{.dtype = options.dtype, .source = &checkpoint.tensors, .trainable = options.trainable});
  try {
    model->lm_ = std::make_unique<LanguageModel>(*model->params_, config);
  } catch (const Error& problem) {
    throw Error(checkpoint.weights.string(), ": ", problem.what());
  }
  model->params_->forget_source();
  return model;
}

std::unique_ptr<Model> Model::create(const ModelConfig& config, uint64_t seed, const ModelOptions& options) {
  check(options);
  std::unique_ptr<Model> model(new Model);
  model->options_ = options;
  model->params_ = std::make_unique<ParamStore>(
      ParamStore::Options{.dtype = options.dtype, .seed = seed, .trainable = options.trainable});
  model->lm_ = std::make_unique<LanguageModel>(*model->params_, config);
  return model;
}

void Model::save(const Path& directory) const { save(directory, options_.dtype); }

void Model::save(const Path& directory, DType dtype) const {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const auto& param : params_->all()) {
    const bool narrow = !param->flags.keep_f32 || dtype == DType::f64;
    tensors.emplace_back(param->name, param->var.value.to(narrow ? dtype : DType::f32));
  }
  write_checkpoint(directory, config().json(), tensors);
}

Path resolve_model(const Path& path) {
  const Path latest = path / "latest";
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(latest, ignored)) return path;
  std::string name = read_text(latest);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  require(!name.empty() && name.find('/') == name.npos && std::filesystem::is_directory(path / name, ignored),
          latest.string(), " names no checkpoint in ", path.string(), ", expected the name of a directory, step-N");
  return path / name;
}

std::string tokenizer_of(const Path& path, const ModelConfig& config) {
  const Path model = resolve_model(path);
  const Path directory = std::filesystem::is_directory(model) ? model : model.parent_path();
  const Path json = directory / "tokenizer.json";
  if (std::filesystem::exists(json)) return json.string();
  return config.vocab_size == 256 ? "bytes" : "";
}

}  // namespace ssm
