// A model ready to run: parameters and what they came from. What the command line's MODEL becomes.
#pragma once

#include <memory>
#include <string>

#include "core/device.h"
#include "models/language_model.h"
#include "models/model_file.h"

namespace ssm {

struct ModelOptions {
  Device device;
  DType dtype = DType::f32;  // of the weights; f64 on Device::ref alone
  // open() keeps f32, bf16 and f16 of the file; `dtype` is then that of most of it, on a GPU of all
  bool as_stored = false;
  bool trainable = false;
};

// Not movable: parameters, mixers and Vars refer to each other.
class Model {
 public:
  // A checkpoint as published, of either home, or a run (models/model_file.h). What need not be converted stays where
  // it is, in the mapped file.
  static std::unique_ptr<Model> open(const Path& path, const ModelOptions& options);
  static std::unique_ptr<Model> open(const ModelFile& file, const ModelOptions& options);
  // Random initial weights; a function of config and seed.
  static std::unique_ptr<Model> create(const ModelConfig& config, uint64_t seed, const ModelOptions& options);

  const LanguageModel& lm() const { return *lm_; }
  const ModelConfig& config() const { return lm_->config(); }
  ParamStore& params() { return *params_; }
  const ParamStore& params() const { return *params_; }
  const ModelOptions& options() const { return options_; }

  // The directory of a MODEL: config.json and model.safetensors, filled in place (write_directory makes it whole).
  // Parameters keep their dtype (a trainable model's are saved in f32, as the optimiser knows them), or are converted to
  // `dtype` where they need not stay f32.
  void save(const Path& directory) const;
  void save(const Path& directory, DType dtype) const;

 private:
  Model() = default;
  ModelOptions options_;
  std::unique_ptr<ParamStore> params_;
  std::unique_ptr<LanguageModel> lm_;
};

// The path of tokenizer.json or tokenizer.model where a checkpoint has one, "bytes" for other models of 256 tokens,
// else "".
std::string tokenizer_of(const Path& model, const ModelConfig& config);

}  // namespace ssm
