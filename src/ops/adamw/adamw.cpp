// The front of adamw: checks, and on the host the order in which parameters are read and changed.
#include "ops/adamw/adamw.h"

namespace ssm {
namespace {

void check(const AdamWItem& item) {
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

}  // namespace

double adamw(const Ctx& ctx, std::span<const AdamWItem> items, const AdamWStep& step) {
  require(step.step >= 1, "adamw: step ", step.step, "; steps count from 1");
  for (const AdamWItem& item : items) check(item);
  if constexpr (kHasCuda)
    if (ctx.device.is_cuda()) return cuda::adamw(items, step, ctx.device);

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
