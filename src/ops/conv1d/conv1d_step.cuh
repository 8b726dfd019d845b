// conv1d of one token for each of many sequences, as decoding has them.
#pragma once

#include "ops/conv1d/conv1d.h"

namespace ssm::cuda {

// For four taps, sequences of one token each and fewer than 65,536, channels and rows in packs of 4, and weights and
// states on 16 bytes.
void conv1d_step(const Conv1dForward& args, Stream stream);

}  // namespace ssm::cuda
