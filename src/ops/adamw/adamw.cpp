// The front of adamw: checks, and on the host the order in which parameters are read and changed.
#include "ops/adamw/adamw.h"

namespace ssm {
namespace {

void check_item(const AdamWItem& item) {
  const Tensor& value = item.value;
  require(value.contiguous(), "adamw: a value of shape ", value.shape(), " is not contiguous");
  for (const Tensor* other : {&item.gradient, &item.m, &item.v})
    require(other->shape() == value.shape() && other->dtype() == value.dtype() && other->contiguous(),
            "adamw: a value is ", name_of(value.dtype()), " ", value.shape(), ", its gradient or moment ",
            name_of(other->dtype()), " ", other->shape(), "; expected the same, contiguous");
  if (item.copy)
    require(item.copy.shape() == value.shape() && item.copy.contiguous() &&
                (item.copy.dtype() == DType::bf16 || item.copy.dtype() == DType::f16),
            "adamw: the copy of a value ", value.shape(), " is ", name_of(item.copy.dtype()), " ", item.copy.shape(),
            "; expected the same shape in bf16 or f16, contiguous");
}

void check(std::span<const AdamWItem> items, const AdamWStep& step) {
  require(step.step >= 1, "adamw: step ", step.step, "; steps count from 1");
  for (const AdamWItem& item : items) check_item(item);
}

}  // namespace

double adamw(const Ctx& ctx, std::span<const AdamWItem> items, const AdamWStep& step) {
  if (ctx.device.is_cuda()) return queue_adamw(ctx, items, step, {}).on(Device::cpu()).item<double>();
  check(items, step);
  const auto sum_of_squares = ctx.device.is_ref() ? ref::sum_of_squares : cpu::sum_of_squares;
  const auto update = ctx.device.is_ref() ? ref::adamw_update : cpu::adamw_update;
  double sum = 0;
  for (const AdamWItem& item : items) sum += sum_of_squares(item.gradient, *ctx.threads);
  const double norm = std::sqrt(sum);
  if (!std::isfinite(norm)) return norm;
  for (const AdamWItem& item : items) {
    update(item, step, step.scale(norm), *ctx.threads);
    if (item.copy) item.copy.copy_from(item.value);
  }
  return norm;
}

Tensor queue_adamw(const Ctx& ctx, std::span<const AdamWItem> items, const AdamWStep& step,
                   const AdamWCondition& condition) {
  require(ctx.device.is_cuda(), "queue_adamw: on ", name_of(ctx.device), "; expected a GPU");
  check(items, step);
  require(!condition.losses || (condition.losses.dtype() == DType::f32 && condition.losses.contiguous()),
          "queue_adamw: losses are ", name_of(condition.losses.dtype()), ", expected f32, contiguous");
  require(!condition.norm || condition.norm.dtype() == DType::f64, "queue_adamw: the norm before is ",
          name_of(condition.norm.dtype()), ", expected f64");
  if constexpr (kHasCuda) return cuda::adamw(items, step, condition, ctx.device);
  return {};
}

std::optional<int64_t> first_not_finite(const Tensor& tensor) {
  require(tensor.contiguous(), "first_not_finite: a tensor of shape ", tensor.shape(), " is not contiguous");
  const auto search = [](const auto& values) -> std::optional<int64_t> {
    const auto found = std::find_if(values.begin(), values.end(), [](auto value) { return !std::isfinite(value); });
    if (found == values.end()) return {};
    return found - values.begin();
  };
  return tensor.dtype() == DType::f64 ? search(tensor.span<double>()) : search(tensor.span<float>());
}

}  // namespace ssm
