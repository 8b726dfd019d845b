// The selective scan of a few tokens a sequence, as decoding has them: (9) to (12) with the state in memory.
#pragma once

#include "ops/selective_scan/selective_scan.h"

namespace ssm::cuda {

// For arguments without `starts`, and with a state unless no sequence has more than one token.
void selective_scan_step(const ScanForward& args, Stream stream);

}  // namespace ssm::cuda
