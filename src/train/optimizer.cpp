// What the optimiser knows of parameters; its arithmetic is ops/adamw, which writes nothing when a gradient is no
// number.
#include "train/optimizer.h"

#include <cmath>

#include "core/error.h"
#include "ops/adamw/adamw.h"

namespace ssm {
namespace {

// A parameter that no op used has no gradient in this step, and stays as it is.
bool has_gradient(const Param& param) { return param.var.grad && param.var.grad->written; }

bool decays(const Param& param) { return param.var.value.rank() >= 2 && !param.flags.no_decay; }

AdamWStep numbers_of(const OptimizerConfig& config, double lr, int64_t step) {
  return {.lr = lr, .beta1 = config.beta1, .beta2 = config.beta2, .eps = config.eps, .clip = config.clip, .step = step};
}

void load_into(const Tensor& to, const TensorMap& tensors, const std::string& name, const std::string& where) {
  const auto found = tensors.find(name);
  require(found != tensors.end(), where, " has no tensor ", name, "; is it of this model?");
  const Tensor& from = found->second;
  require(from.shape() == to.shape() && from.dtype() == to.dtype(), where, ": ", name, " is ", name_of(from.dtype()),
          " ", from.shape(), ", expected ", name_of(to.dtype()), " ", to.shape());
  to.copy_from(from);
}

}  // namespace

Optimizer::Optimizer(const ParamStore& params) : params_(params) {
  for (const auto& param : params.all()) {
    const Tensor& value = param->exact();
    const auto zeros = [&] { return Tensor::zeros(value.shape(), value.dtype(), value.device()); };
    moments_.push_back({zeros(), zeros()});
  }
}

std::vector<AdamWItem> Optimizer::items(const OptimizerConfig& config, double peak_lr) const {
  std::vector<AdamWItem> items;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const Param& param = *params_.all()[i];
    if (!has_gradient(param)) continue;
    items.push_back({.value = param.exact(),
                     .gradient = param.var.grad->value,
                     .m = moments_[i].m,
                     .v = moments_[i].v,
                     .copy = param.master ? param.var.value : Tensor(),
                     .weight_decay = decays(param) ? config.weight_decay : 0.0,
                     .lr_scale = param.flags.lr > 0 && peak_lr > 0 ? param.flags.lr / peak_lr : 1.0});
  }
  return items;
}

double Optimizer::update(const Ctx& ctx, const OptimizerConfig& config, double lr, double peak_lr, int64_t step) {
  const double norm = adamw(ctx, items(config, peak_lr), numbers_of(config, lr, step));
  if (!std::isfinite(norm)) throw not_finite(step);
  return norm;
}

Tensor Optimizer::queue_update(const Ctx& ctx, const OptimizerConfig& config, double lr, double peak_lr, int64_t step,
                               const AdamWCondition& condition) const {
  return queue_adamw(ctx, items(config, peak_lr), numbers_of(config, lr, step), condition);
}

Error Optimizer::not_finite(int64_t step) const {
  for (const auto& param : params_.all()) {
    if (!has_gradient(*param)) continue;
    const Tensor gradient = param->var.grad->value.on(Device::cpu());
    if (const auto element = first_not_finite(gradient))
      return Error("step ", step, ": the gradient of ", param->name, " ", gradient.shape(),
                   " is NaN or infinite at element ", *element,
                   "; nothing was updated. A smaller --lr or --clip, or a longer --warmup, may help");
  }
  return Error("step ", step, ": the gradient norm overflows; nothing was updated. A smaller --lr may help");
}

NamedTensors Optimizer::tensors() const {
  NamedTensors all;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::string& name = params_.all()[i]->name;
    all.emplace_back("m." + name, moments_[i].m.on(Device::cpu()));
    all.emplace_back("v." + name, moments_[i].v.on(Device::cpu()));
  }
  return all;
}

void Optimizer::load(const TensorMap& tensors, const std::string& where) {
  require(tensors.size() == 2 * moments_.size(), where, " holds ", tensors.size(), " tensors, expected ",
          2 * moments_.size(), "; is it of this model?");
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::string& name = params_.all()[i]->name;
    load_into(moments_[i].m, tensors, "m." + name, where);
    load_into(moments_[i].v, tensors, "v." + name, where);
  }
}

}  // namespace ssm
