// What every op needs to know besides its tensors.
#pragma once

#include "core/cuda.h"
#include "core/device.h"
#include "core/tape.h"
#include "core/threads.h"

namespace ssm {

struct Ctx {
  Device device;
  Threads* threads = nullptr;  // never null when an op runs
  Tape* tape = nullptr;        // null: inference

  // An op's output, with room for a gradient when a tape is there.
  Var output(Tensor value) const { return tape ? tape->variable(std::move(value)) : Var{std::move(value), nullptr}; }
};

// The call of an op's version for a device: ref::function(arguments, threads), cpu:: the same, or
// cuda::function(arguments, stream). In a build without CUDA the last is declared and never called.
#define SSM_RUN(device, threads, function, arguments)  \
  do {                                                 \
    if ((device).is_ref()) {                           \
      ref::function(arguments, threads);               \
    } else if (!(device).is_cuda()) {                  \
      cpu::function(arguments, threads);               \
    } else if constexpr (kHasCuda) {                   \
      cuda::function(arguments, cuda::stream(device)); \
    }                                                  \
  } while (false)

// Views of consecutive columns of a (t, sum of sizes) value. Their gradients are columns of its gradient, so nothing
// is copied either way. The value must have no other consumer under a tape.
std::vector<Var> split(const Ctx& ctx, const Var& value, std::initializer_list<int64_t> sizes);

}  // namespace ssm
