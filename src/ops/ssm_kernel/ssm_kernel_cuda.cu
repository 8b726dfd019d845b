// ssm_kernel on a GPU: which of its two ways a system goes.
#include "ops/ssm_kernel/ssm_kernel_cuda.cuh"

namespace ssm::cuda {

void ssm_kernel_forward(const SsmKernelForward& args, Stream stream) {
  if (args.K.count() > 0) args.f ? cauchy_forward(args, stream) : vandermonde_forward(args, stream);
}

void ssm_kernel_backward(const SsmKernelBackward& args, Stream stream) {
  if (args.dK.count() > 0) return args.f ? cauchy_backward(args, stream) : vandermonde_backward(args, stream);
  for (const Tensor& sum : {args.dz, args.db, args.dc, args.df, args.dg})
    if (sum) sum.fill_zero();
}

}  // namespace ssm::cuda
