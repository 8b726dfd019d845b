// What every op needs to know besides its tensors.
#pragma once

#include "core/cuda.h"
#include "core/device.h"
#include "core/tape.h"
#include "core/threads.h"

namespace ssm {

// Results that are dear to make again, of a run whose other results are made again in the backward (recompute() below):
// an op puts them here in the first run and takes them from here in the second, in the same order.
struct Kept {
  std::vector<Tensor> tensors;
  size_t next = 0;
  bool second_run = false;

  Tensor take() { return tensors[next++]; }
};

// What the backward may make again instead of finding it saved.
enum class Recompute {
  nothing,
  cheap,  // where a mixer says that it costs little: on a GPU, whose memory is scarcer than its time
  blocks  // all inside a block of the model; its inputs are saved
};

struct Ctx {
  Device device;
  Threads* threads = nullptr;  // never null when an op runs
  Tape* tape = nullptr;        // null: inference
  Recompute recompute = Recompute::cheap;
  Kept* kept = nullptr;  // of the run that is under way inside recompute()

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

// The outputs of `function(ctx, inputs)`, of which nothing is saved but the inputs and, if `keep`, what ops put into
// Ctx::kept: the backward runs the function again, with a tape of its own. The function's results must depend on its
// arguments and on parameters alone. Without a tape, just the call.
using Recomputed = std::function<std::vector<Var>(const Ctx& ctx, const std::vector<Var>& inputs)>;
std::vector<Var> recompute(const Ctx& ctx, const char* name, bool keep, const std::vector<Var>& inputs,
                           const Recomputed& function);

// Views of consecutive columns of a (t, sum of sizes) value. Their gradients are columns of its gradient, so nothing
// is copied either way; one of size 0 is absent. The value must have no other consumer under a tape.
std::vector<Var> split(const Ctx& ctx, const Var& value, std::initializer_list<int64_t> sizes);
// (t, a) and (t, b) side by side: (t, a + b).
Var join(const Ctx& ctx, const Var& left, const Var& right);

}  // namespace ssm
