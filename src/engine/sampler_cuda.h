// Choosing tokens on a GPU: what sampler.h does without penalties and min-p, for many rows at once.
#pragma once

#include "core/cuda.h"

namespace ssm::cuda {

struct SampleRows {
  Tensor logits;              // (rows, padded vocab) f32
  int64_t vocab;              // ids from here on never come
  Tensor temperature, top_p;  // (rows) f32
  Tensor top_k;               // (rows) i64; 0: all
  Tensor uniform;             // (rows) f64, in [0, 1)
  Tensor ids;                 // output: (rows) i64
  Tensor failed;              // output: i32 (1): becomes 1 when logits are NaN, +inf, or all -inf; never cleared
  bool all_greedy;            // every temperature is 0: nothing is drawn
};
void sample(const SampleRows&, Stream);

}  // namespace ssm::cuda
