// What the benches of whole models share: random weights and ids, and a model's matrix products alone.
#include "bench/models.h"

#include <algorithm>
#include <map>

#include "core/rng.h"

namespace ssm::bench {
namespace {

// layers.3.norm.weight -> norm.weight
std::string without_layer(const std::string& name) {
  const std::string prefix = "backbone.layers.";
  return name.starts_with(prefix) ? name.substr(name.find('.', prefix.size()) + 1) : name;
}

Tensor drawn(const Param& param, Threads& threads) {
  const Tensor value = Tensor::empty(param.var.value.shape(), DType::f32);
  const Rng rng(1, param.name);
  const int64_t count = value.count(), tasks = 256;
  threads.parallel(tasks, [&](int64_t task, int) {
    for (int64_t i = task * count / tasks; i < (task + 1) * count / tasks; ++i)
      value.data<float>()[i] = static_cast<float>(param.init(rng, i));
  });
  return value;
}

}  // namespace

std::unique_ptr<Model> random_model(const Bench& bench, const std::string& preset, bool trainable) {
  return random_model(bench, ModelConfig::preset(preset), trainable);
}

std::unique_ptr<Model> random_model(const Bench& bench, const ModelConfig& config, bool trainable) {
  const ModelOptions options{.device = bench.device(), .dtype = bench.dtype(), .trainable = trainable};
  if (!bench.on_gpu()) return Model::create(config, 1, options);
  ParamStore shapes({.shapes_only = true});
  const LanguageModel declares(shapes, config);
  ModelFile file;
  file.config = config;
  std::map<std::string, Tensor> first;
  for (const auto& param : shapes.all()) {
    Tensor& value = first[without_layer(param->name)];
    if (!value) {
      value = drawn(*param, bench.threads());
      if (!param->flags.keep_f32) value = value.to(bench.dtype());
    }
    file.tensors[param->name] = value;
  }
  return Model::open(file, options);
}

Tensor random_ids(int64_t count, int64_t vocab) {
  const Tensor ids = Tensor::empty({count}, DType::i64);
  const Rng rng(1, "ids");
  for (int64_t i = 0; i < count; ++i)
    ids.data<int64_t>()[i] = static_cast<int64_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocab)));
  return ids;
}

Projections::Projections(const Model& model) {
  for (const auto& param : model.params().all()) {
    const Tensor& value = param->var.value;
    if (param->name == "backbone.embedding.weight" || param->name == "lm_head.weight")
      head = value.matrix<float>();
    else if (param->name.ends_with("_proj.weight"))
      layers.push_back(value.matrix<float>());
  }
}

BarePasses::BarePasses(const Projections& projections, int64_t t, int threads)
    : projections_(projections), t_(t), threads_(threads) {
  int64_t widest = projections.head.rows, largest = 0;
  for (const auto& weight : projections.layers) {
    widest = std::max({widest, weight.rows, weight.columns});
    largest = std::max(largest, weight.rows * weight.columns);
  }
  a_ = random("a", {t, widest});
  b_ = Tensor::zeros({t, widest}, DType::f32);
  gradient_ = Tensor::zeros({std::max(largest, projections.head.rows * projections.head.columns)}, DType::f32);
}

void BarePasses::forward() const {
  for (const auto& weight : projections_.layers) multiply(weight);
}

void BarePasses::train() const {
  for (const auto& weight : projections_.layers) multiply(weight), differentiate(weight);
  multiply(projections_.head), differentiate(projections_.head);
}

double BarePasses::forward_operations() const {
  double sum = 0;
  for (const auto& weight : projections_.layers) sum += operations(weight);
  return sum;
}

double BarePasses::train_operations() const { return 3 * (forward_operations() + operations(projections_.head)); }

double BarePasses::operations(const Matrix<float>& weight) const {
  return 2.0 * static_cast<double>(t_ * weight.rows * weight.columns);
}

void BarePasses::multiply(const Matrix<float>& weight) const {
  blas_gemm(columns(a_, weight.columns), false, weight, true, columns(b_, weight.rows), threads_);
}

void BarePasses::differentiate(const Matrix<float>& weight) const {
  blas_gemm(columns(a_, weight.rows), false, weight, false, columns(b_, weight.columns), threads_);
  const Matrix<float> dW{gradient_.data<float>(), weight.rows, weight.columns, weight.columns};
  blas_gemm(columns(a_, weight.rows), true, columns(a_, weight.columns), false, dW, threads_);
}

}  // namespace ssm::bench
