// The definition of discretize, f32 and f64: one channel after the other, in the precision of the tensors.
#include "ops/discretize/discretize_channel.h"

namespace ssm::ref {

void discretize_forward(const DiscretizeForward& args, Threads&) {
  for (int64_t e = 0; e < args.inv_dt.size(0); ++e)
    args.z.dtype() == DType::f64 ? discretize_channel::forward<double, double>(args, e)
                                 : discretize_channel::forward<float, float>(args, e);
}

void discretize_backward(const DiscretizeBackward& args, Threads&) {
  discretize_channel::clear(args);
  for (int64_t e = 0; e < args.inv_dt.size(0); ++e)
    args.dz.dtype() == DType::f64 ? discretize_channel::backward<double, double>(args, e)
                                  : discretize_channel::backward<float, float>(args, e);
}

}  // namespace ssm::ref
