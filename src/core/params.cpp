#include "core/params.h"

#include <algorithm>
#include <cmath>

#include "core/threads.h"

namespace ssm {

Init Init::constant(double value) {
  return Init([value](const Rng&, int64_t) { return value; });
}

Init Init::normal(double deviation) {
  return Init([deviation](const Rng& rng, int64_t i) { return deviation * rng.normal(static_cast<uint64_t>(i)); });
}

Init Init::uniform(double bound) {
  return Init([bound](const Rng& rng, int64_t i) { return bound * (2 * rng.uniform(static_cast<uint64_t>(i)) - 1); });
}

Init Init::fan_in(int64_t fan, double scale) { return uniform(scale / std::sqrt(static_cast<double>(fan))); }

Init Init::custom(Fill fill) { return Init(std::move(fill)); }

void ParamStore::expect_all_used(std::string_view where, const std::vector<std::string>& allowed) const {
  if (!options_.source) return;
  for (const auto& [name, tensor] : *options_.source) {
    if (find(name) || std::find(allowed.begin(), allowed.end(), name) != allowed.end()) continue;
    throw Error(where, ": tensor ", name, " ", tensor.shape(),
                " belongs to no part of the model that config.json describes; is this its config.json?");
  }
}

Param* ParamStore::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

Tensor ParamStore::initial_value(const Param& param) const {
  const Rng rng(options_.seed, param.name);
  const Tensor& like = param.var.value;
  Tensor value = Tensor::empty(like.shape(), like.dtype() == DType::f64 ? DType::f64 : DType::f32);
  const auto draw = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double drawn = param.init(rng, i);
      if (value.dtype() == DType::f64)
        value.data<double>()[i] = drawn;
      else
        value.data<float>()[i] = static_cast<float>(drawn);
    }
  };
  constexpr int64_t kTask = int64_t{1} << 16;  // elements; fewer are not worth a thread
  const int64_t tasks = (value.count() + kTask - 1) / kTask;
  Threads threads(tasks > 4 ? 0 : 1);
  threads.parallel(tasks, [&](int64_t task, int) { draw(task * kTask, std::min(value.count(), (task + 1) * kTask)); });
  return value;
}

// The values of `from` where they belong, as the parameter's own.
void ParamStore::place(Param& param, const Tensor& from, DType dtype) const {
  param.var.value = Tensor::empty(from.shape(), dtype, options_.device);
  const bool narrow = options_.trainable && dtype != DType::f32 && dtype != DType::f64;
  if (narrow) param.master = Tensor::empty(from.shape(), DType::f32, options_.device);
  if (narrow) param.master.copy_from(from);
  param.var.value.copy_from(narrow ? param.master : from);
}

int64_t ParamStore::count() const {
  int64_t total = 0;
  for (const auto& param : params_) total += param->var.value.count();
  return total;
}

int64_t ParamStore::bytes() const {
  int64_t total = 0;
  for (const auto& param : params_) total += param->var.value.bytes();
  return total;
}

void ParamStore::forget_gradients() {
  for (const auto& param : params_)
    if (param->var.grad) param->var.grad->written = false;
}

void ParamStore::mark_on(Tape& tape) const {
  for (const auto& param : params_) tape.mark_parameter(param->var.value);
}

std::string Params::full(std::string_view name) const {
  return prefix_.empty() ? std::string(name) : prefix_ + "." + std::string(name);
}

Params Params::sub(std::string_view name) const { return Params(*store_, full(name)); }

bool Params::in_source(std::string_view name) const {
  return store_->options_.source && store_->options_.source->contains(full(name));
}

Var Params::get(std::string_view name, const Shape& shape, const Init& init, Flags flags) const {
  const ParamStore::Options& options = store_->options_;
  auto param = std::make_unique<Param>(Param{.name = full(name), .var = {}, .flags = flags, .init = init});
  require(!store_->find(param->name), "parameter ", param->name, " is declared twice");
  for (const int64_t size : shape)
    require(size > 0, "parameter ", param->name, " would have shape ", shape, "; check the sizes in the config");
  DType dtype = flags.keep_f32 && options.dtype != DType::f64 ? DType::f32 : options.dtype;
  if (options.source && !options.shapes_only) {
    const auto found = options.source->find(param->name);
    require(found != options.source->end(), "the checkpoint has no tensor ", param->name, "; config says it is ",
            shape);
    const Tensor& value = found->second;
    require(value.shape() == shape, param->name, " is ", value.shape(), ", config says ", shape);
    require(is_float(value.dtype()), param->name, " holds ", name_of(value.dtype()), ", expected floating point");
    if (options.as_stored && !flags.keep_f32 && value.dtype() != DType::f64) dtype = value.dtype();
    const bool keep = value.dtype() == dtype && value.contiguous() && !options.trainable && !options.device.is_cuda();
    param->var.value = value;
    if (!keep) store_->place(*param, value, dtype);
  } else {
    param->var.value = Tensor::borrow(nullptr, shape, dtype, nullptr);
    if (!options.shapes_only) store_->place(*param, store_->initial_value(*param), dtype);
  }
  if (options.trainable) {
    param->var.grad = std::make_shared<Grad>();
    param->var.grad->shape = shape;
    param->var.grad->dtype = param->exact().dtype();
    param->var.grad->device = options.device;
  }
  store_->by_name_[param->name] = param.get();
  store_->params_.push_back(std::move(param));
  return store_->params_.back()->var;
}

}  // namespace ssm
