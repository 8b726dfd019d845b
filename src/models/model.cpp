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
  require(!options.as_stored || (!options.trainable && !options.device.is_ref()),
          "weights as stored are for inference on the fast devices; training and ref take f32");
  if (!options.trainable) return;
  require(options.dtype != DType::f16, "--dtype f16: training is in f32, or on a GPU in bf16, whose range is that of f32");
  require(options.dtype != DType::bf16 || options.device.is_cuda(), "--dtype bf16 with --device ",
          name_of(options.device), ": training on this device is in f32");
}

}  // namespace

std::unique_ptr<Model> Model::open(const Path& path, const ModelOptions& options) {
  check(options);
  return open(ModelFile::open(path), options);
}

std::unique_ptr<Model> Model::open(const ModelFile& file, const ModelOptions& options) {
  check(options);
  std::unique_ptr<Model> model(new Model);
  model->options_ = options;
  if (options.as_stored) model->options_.dtype = file.dtype;
  // A GPU's matrix products take one dtype: activations have that of the weights.
  const bool mixed = options.as_stored && !options.device.is_cuda();
  model->params_ = std::make_unique<ParamStore>(ParamStore::Options{.dtype = model->options_.dtype,
                                                                    .source = &file.tensors,
                                                                    .as_stored = mixed,
                                                                    .trainable = options.trainable,
                                                                    .device = options.device});
  model->lm_ = std::make_unique<LanguageModel>(*model->params_, file.config);
  model->params_->forget_source();
  return model;
}

std::unique_ptr<Model> Model::create(const ModelConfig& config, uint64_t seed, const ModelOptions& options) {
  check(options);
  std::unique_ptr<Model> model(new Model);
  model->options_ = options;
  model->params_ = std::make_unique<ParamStore>(
      ParamStore::Options{.dtype = options.dtype,
                          .seed = seed,
                          .trainable = options.trainable,
                          .device = options.device});
  model->lm_ = std::make_unique<LanguageModel>(*model->params_, config);
  return model;
}

void Model::save(const Path& directory) const { save(directory, options_.trainable ? accumulator_of(options_.dtype) : options_.dtype); }

void Model::save(const Path& directory, DType dtype) const {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const auto& param : params_->all()) {
    const bool narrow = !param->flags.keep_f32 || dtype == DType::f64;
    tensors.emplace_back(param->name, param->exact().to(narrow ? dtype : DType::f32).on(Device::cpu()));
  }
  write_checkpoint(directory, config().json(), tensors);
}

std::string tokenizer_of(const Path& path, const ModelConfig& config) {
  const Path model = resolve_model(path);
  const Path directory = std::filesystem::is_directory(model) ? model : model.parent_path();
  for (const char* name : {"tokenizer.json", "tokenizer.model"})
    if (std::filesystem::exists(directory / name)) return (directory / name).string();
  return config.vocab_size == 256 ? "bytes" : "";
}

}  // namespace ssm
