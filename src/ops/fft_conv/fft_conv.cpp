// The front of fft_conv: checks, allocation, choice of the version, record of the backward.
#include "ops/fft_conv/fft_conv.h"

namespace ssm {

Var fft_conv(const Ctx& ctx, const Var& u, const Var& K, const Var& D, const Seqs& seqs) {
  const Shape shape = u.value.shape(), taps = K.value.shape();
  require(shape.rank() == 2 && taps.rank() == 2 && shape[1] == taps[1], "fft_conv: u is ", shape, " and K ", taps,
          ", expected (t, e) and (length, e)");
  require(seqs.tokens() == shape[0], "fft_conv: the sequences have ", seqs.tokens(), " tokens, u has ", shape[0]);
  require(seqs.longest <= taps[0] && taps[0] <= int64_t{1} << 28, "fft_conv: a kernel of ", taps[0],
          " taps for sequences of up to ", seqs.longest, "; expected as many at least, and at most 2^28");
  require(!D || D.value.count() == shape[1], "fft_conv: D is ", D.value.shape(), ", expected ", shape[1], " numbers");

  const FftConvForward args{
      .u = u.value, .K = K.value, .D = D.value, .seqs = &seqs, .y = Tensor::empty(shape, u.value.dtype(), ctx.device)};
  SSM_RUN(ctx.device, *ctx.threads, fft_conv_forward, args);
  const Var y = ctx.output(args.y);
  if (!ctx.tape) return y;
  ctx.tape->record(
      "fft_conv", {{"u", args.u}, {"K", args.K}, {"D", args.D}}, {y.grad},
      [device = ctx.device, threads = ctx.threads, seqs, du = u.grad, dK = K.grad, dD = D.grad](const Backward& b) {
        const GradOut u_out(du), K_out(dK), D_out(dD);
        const FftConvBackward back{.u = b.saved("u"),
                                   .K = b.saved("K"),
                                   .D = b.saved("D"),
                                   .seqs = &seqs,
                                   .dy = b.grad(0),
                                   .du = u_out.out,
                                   .dK = K_out.out,
                                   .dD = D_out.out};
        SSM_RUN(device, *threads, fft_conv_backward, back);
      });
  return y;
}

}  // namespace ssm
