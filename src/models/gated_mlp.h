// The MLP after a mixer, state-spaces' GatedMLP (SwiGLU of Shazeer 2020 with the halves the other way round):
//
//   [y; z] = fc1 x,   out = fc2 (y silu(z)),   fc1 (2 f, d), fc2 (d, f), no biases
#pragma once

#include "core/context.h"
#include "core/params.h"

namespace ssm {

class GatedMlp {
 public:
  // f is `width` rounded up to a multiple of 128. One of `layers` blocks.
  GatedMlp(const Params& params, int64_t d_model, int64_t width, int64_t layers);
  Var forward(const Ctx& ctx, const Var& x) const;  // (t, d) -> (t, d)

 private:
  int64_t f_;
  Var fc1_, fc2_;
};

}  // namespace ssm
