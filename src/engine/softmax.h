// e^x over many logits at once: the one part of sampling that is arithmetic. softmax_cpu.cpp has it in SIMD.
#pragma once

#include <cstdint>

namespace ssm::cpu {

// weights[i] = e^(scale (logits[i] - most)), or 0 below 2^-126; most is at least every logit, scale >= 0, and -inf
// gives 0. Relative error 1e-7 near 1, 1e-5 at the small end. In place is allowed.
void softmax_weights(const float* logits, int64_t count, float most, float scale, float* weights);

}  // namespace ssm::cpu
