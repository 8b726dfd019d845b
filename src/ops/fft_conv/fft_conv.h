// The causal convolution of every channel with a kernel as long as the sequence, by Fourier transforms. Within each
// sequence, which starts from nothing,
//
//   y_t = sum_(l=0..t) K_l u_(t-l) + D u_t                                                  (1)
//
//   u (t, e)  K (length, e)  D: e numbers, or absent  ->  y (t, e)
//
// K must reach as far as the longest sequence; of shorter ones it is used as far as they go. ref sums as it stands. On
// the cpu a sequence of length L is padded with zeros to the next 2 * (a product of 2, 3 and 5) from 2 L on: its
// result does not depend on its neighbours. On a GPU cuFFT is needed; without it the op fails and says so.
//
// Saved for backward: the inputs. Work a channel: two transforms a sequence and one of K forward, three and two
// backward, each of some 5 L log2(2 L) operations.
#pragma once

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

Var fft_conv(const Ctx& ctx, const Var& u, const Var& K, const Var& D, const Seqs& seqs);

struct FftConvForward {
  Tensor u, K, D;
  const Seqs* seqs;
  Tensor y;
};

struct FftConvBackward {
  Tensor u, K, D;
  const Seqs* seqs;
  Tensor dy;
  Tensor du, dK, dD;  // outputs; each may be absent
};

namespace ref {
void fft_conv_forward(const FftConvForward&, Threads&);
void fft_conv_backward(const FftConvBackward&, Threads&);
}  // namespace ref
namespace cpu {
void fft_conv_forward(const FftConvForward&, Threads&);
void fft_conv_backward(const FftConvBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void fft_conv_forward(const FftConvForward&, Stream);
void fft_conv_backward(const FftConvBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
