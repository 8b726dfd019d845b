// The definition of ssm_kernel, f32 and f64: (1), the recurrence fed with 1, 0, 0, ...
#include "ops/diag_scan/diag_scan.h"
#include "ops/ssm_kernel/ssm_kernel.h"

namespace ssm::ref {
namespace {

// One impulse in every channel.
Tensor impulse(int64_t length, int64_t e, DType dtype) {
  const Tensor u = Tensor::zeros({length, e}, dtype);
  for (int64_t i = 0; length > 0 && i < e; ++i)
    if (dtype == DType::f64)
      u.data<double>()[i] = 1;
    else
      u.data<float>()[i] = 1;
  return u;
}

}  // namespace

void ssm_kernel_forward(const SsmKernelForward& args, Threads& threads) {
  const Seqs seqs = Seqs::dense(1, args.K.size(0));
  diag_scan_forward({.z = args.z,
                     .b = args.b,
                     .c = args.c,
                     .f = args.f,
                     .g = args.g,
                     .u = impulse(args.K.size(0), args.K.size(1), args.K.dtype()),
                     .seqs = &seqs,
                     .y = args.K},
                    threads);
}

void ssm_kernel_backward(const SsmKernelBackward& args, Threads& threads) {
  const int64_t length = args.dK.size(0), e = args.dK.size(1);
  const Seqs seqs = Seqs::dense(1, length);
  const Tensor u = impulse(length, e, args.dK.dtype()),
               starts = Tensor::empty({diag_scan_spans(seqs), args.z.size(0), args.z.size(1), e}, args.dK.dtype());
  diag_scan_forward(
      {.z = args.z, .b = args.b, .c = args.c, .f = args.f, .g = args.g, .u = u, .seqs = &seqs, .starts = starts},
      threads);
  diag_scan_backward({.z = args.z,
                      .b = args.b,
                      .c = args.c,
                      .f = args.f,
                      .g = args.g,
                      .u = u,
                      .starts = starts,
                      .seqs = &seqs,
                      .dy = args.dK,
                      .dz = args.dz,
                      .db = args.db,
                      .dc = args.dc,
                      .df = args.df,
                      .dg = args.dg},
                     threads);
}

}  // namespace ssm::ref
