#include "cli/arrays.h"

#include <cmath>

#include "core/error.h"
#include "formats/npy.h"

namespace ssm::cli {

Tensor read_numbers(const Path& path) {
  const Tensor numbers = read_npy(path).to(DType::f64);
  const auto all = numbers.span<double>();
  for (size_t i = 0; i < all.size(); ++i)
    require(std::isfinite(all[i]), path.string(), ": element ", i, " of ", numbers.shape(), " is ", all[i],
            ", expected a finite number");
  return numbers;
}

}  // namespace ssm::cli
