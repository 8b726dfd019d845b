// Norm, clip, update, in this order: all that can fail comes before the first write.
#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/adamw/adamw.h"

namespace ssm {
namespace {

// A parameter that no op used has no gradient in this step, and stays as it is.
bool has_gradient(const Param& param) { return param.var.grad && param.var.grad->written; }

bool decays(const Param& param) { return param.var.value.rank() >= 2 && !param.flags.no_decay; }

// Why the global norm is not finite.
Error not_finite(const ParamStore& params, int64_t step) {
  for (const auto& param : params.all()) {
    if (!has_gradient(*param)) continue;
    const Tensor& gradient = param->var.grad->value;
    if (const auto element = first_not_finite(gradient))
      return Error("step ", step, ": the gradient of ", param->name, " ", gradient.shape(),
                   " is NaN or infinite at element ", *element,
                   "; nothing was updated. A smaller --lr or --clip, or a longer --warmup, may help");
  }
  return Error("step ", step, ": the gradient norm overflows; nothing was updated. A smaller --lr may help");
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
    const Tensor& value = param->var.value;
    moments_.push_back({Tensor::zeros(value.shape(), value.dtype()), Tensor::zeros(value.shape(), value.dtype())});
  }
}

double Optimizer::update(const Ctx& ctx, const OptimizerConfig& config, double lr, int64_t step) {
  double sum = 0;
  for (const auto& param : params_.all())
    if (has_gradient(*param)) sum += squared_norm(ctx, param->var.grad->value);
  const double norm = std::sqrt(sum);
  if (!std::isfinite(norm)) throw not_finite(params_, step);

  // As torch.nn.utils.clip_grad_norm_ scales.
  const double scale = config.clip > 0 ? std::min(1.0, config.clip / (norm + 1e-6)) : 1.0;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const Param& param = *params_.all()[i];
    if (!has_gradient(param)) continue;
    adamw(ctx, param.var.value, param.var.grad->value, moments_[i].m, moments_[i].v,
          AdamWStep{.lr = lr,
                    .beta1 = config.beta1,
                    .beta2 = config.beta2,
                    .eps = config.eps,
                    .weight_decay = decays(param) ? config.weight_decay : 0.0,
                    .step = step,
                    .gradient_scale = scale});
  }
  return norm;
}

NamedTensors Optimizer::tensors() const {
  NamedTensors all;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::string& name = params_.all()[i]->name;
    all.emplace_back("m." + name, moments_[i].m);
    all.emplace_back("v." + name, moments_[i].v);
  }
  return all;
}

void Optimizer::load(const TensorMap& tensors, const std::string& where) {
  const NamedTensors mine = this->tensors();
  require(tensors.size() == mine.size(), where, " holds ", tensors.size(), " tensors, expected ", mine.size(),
          "; is it of this model?");
  for (const auto& [name, tensor] : mine) load_into(tensor, tensors, name, where);
}

}  // namespace ssm
