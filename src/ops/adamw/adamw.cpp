// The fronts of adamw: checks and choice of the kernel.
#include "ops/adamw/adamw.h"

#include <algorithm>

namespace ssm {

void adamw(const Ctx& ctx, const Tensor& value, const Tensor& gradient, const Tensor& m, const Tensor& v,
           const AdamWStep& step) {
  for (const Tensor& other : {gradient, m, v})
    require(other.shape() == value.shape() && other.dtype() == value.dtype() && other.contiguous(),
            "adamw: a value is ", name_of(value.dtype()), " ", value.shape(), ", its gradient or moment ",
            name_of(other.dtype()), " ", other.shape(), "; expected the same, contiguous");
  require(value.contiguous(), "adamw: a value of shape ", value.shape(), " is not contiguous");
  require(step.step >= 1, "adamw: step ", step.step, "; steps count from 1");
  const AdamWUpdate args{.value = value, .gradient = gradient, .m = m, .v = v, .step = step};
  ctx.device.is_ref() ? ref::adamw_update(args, *ctx.threads) : cpu::adamw_update(args, *ctx.threads);
}

double squared_norm(const Ctx& ctx, const Tensor& tensor) {
  require(tensor.contiguous(), "squared_norm: a tensor of shape ", tensor.shape(), " is not contiguous");
  return ctx.device.is_ref() ? ref::sum_of_squares(tensor, *ctx.threads) : cpu::sum_of_squares(tensor, *ctx.threads);
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
