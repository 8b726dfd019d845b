// discretize on threads, in double: 2 Delta / lambda and its like lose digits in f32, and this is no work beside what
// the recurrence then does with every token. A task owns whole copies of A, so that their sums have one order.
#include <algorithm>

#include "ops/discretize/discretize_channel.h"

namespace ssm::cpu {
namespace {

constexpr int64_t kChannels = 16;  // of a task: some 10 us

}  // namespace

void discretize_forward(const DiscretizeForward& args, Threads& threads) {
  const int64_t e = args.inv_dt.size(0);
  threads.parallel((e + kChannels - 1) / kChannels, [&](int64_t task, int) {
    for (int64_t i = task * kChannels; i < std::min(e, (task + 1) * kChannels); ++i)
      discretize_channel::forward<float, double>(args, i);
  });
}

void discretize_backward(const DiscretizeBackward& args, Threads& threads) {
  const int64_t e = args.inv_dt.size(0), copies = args.A_real.size(0);
  discretize_channel::clear(args);
  threads.parallel((copies + kChannels - 1) / kChannels, [&](int64_t task, int) {
    for (int64_t copy = task * kChannels; copy < std::min(copies, (task + 1) * kChannels); ++copy)
      for (int64_t i = copy; i < e; i += copies) discretize_channel::backward<float, double>(args, i);
  });
}

}  // namespace ssm::cpu
