// ssd on the CPU: the definition, in f32.
#include "ops/ssd/ssd.h"

namespace ssm::cpu {

void ssd_forward(const SsdForward& args, Threads& threads) { ref::ssd_forward(args, threads); }
void ssd_backward(const SsdBackward& args, Threads& threads) { ref::ssd_backward(args, threads); }

}  // namespace ssm::cpu
