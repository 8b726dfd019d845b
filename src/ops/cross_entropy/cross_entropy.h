// Cross-entropy of next-token prediction, in nats, alone and fused with the head's product so that (t, vocab) is never
// stored whole:
//
//   l_tv = logits, or x_t . W_v                                                       (1)
//   loss_t = log sum_v exp(l_tv) - l_{t, target_t}, or 0 where target_t is `ignore`   (2)
//   loss = sum_t loss_t / (number of targets that are not `ignore`), 0 if none        (3)
//
//   logits (t, vocab)  or  x (t, d), weight (vocab, d);  targets (t) i64  ->  loss (1)
//
// The targets are on the host; or where the op runs, as Targets that check_targets() made of them there. All f32 on cpu
// (f32 or f64 on ref); without a tape the fused form's weight may be bf16 or f16. On cuda x, weight and dx are f32,
// bf16 or f16 alike, without a tape x also f32 beside a narrower weight; losses and dweight f32. A target outside the
// vocabulary that is not `ignore` is an Error. A NaN logit makes its loss NaN.
//
// cross_entropy saves the logits, and computes their softmax again in the backward. linear_cross_entropy makes the
// gradients of x and weight in its forward, while a chunk's logits are at hand, and saves these: its backward scales.
// Work of the fused form: 2 t d vocab operations without a tape, three times that with one; scratch up to 32 MB.
#pragma once

#include "core/context.h"

namespace ssm {

inline constexpr int64_t kIgnoredTarget = -100;  // PyTorch's default too

// What is asked of the rows of logits.
struct Targets {
  Tensor ids;  // (t) i64
  int64_t ignore;
  int64_t counted;  // ids that are not `ignore`
};
// Of targets on the host. Throws Error, opened by `op`, on one outside the vocabulary.
Targets check_targets(const char* op, const Tensor& ids, int64_t vocab, int64_t ignore = kIgnoredTarget);

Var cross_entropy(const Ctx& ctx, const Var& logits, const Tensor& targets, int64_t ignore = kIgnoredTarget);

Var linear_cross_entropy(const Ctx& ctx, const Var& x, const Var& weight, const Tensor& targets,
                         int64_t ignore = kIgnoredTarget);
Var linear_cross_entropy(const Ctx& ctx, const Var& x, const Var& weight, const Targets& targets);

// loss_t of (2), (t): for evaluation, so nothing is recorded.
Tensor linear_token_losses(const Ctx& ctx, const Tensor& x, const Tensor& weight, const Tensor& targets,
                           int64_t ignore = kIgnoredTarget);

struct CrossEntropyForward {
  Tensor logits;
  Targets targets;
  Tensor losses, loss;  // outputs: (2) (t); (3) (1)
};

struct CrossEntropyBackward {
  Tensor logits;
  Targets targets;
  Tensor dloss;    // (1)
  Tensor dlogits;  // output
};

struct LinearCrossEntropyForward {
  Tensor x, weight;
  Targets targets;
  Tensor losses, loss;  // outputs: (2) (t); (3) (1)
  Tensor dx, dweight;   // outputs, the gradients of (3); each may be absent
};

struct LinearCrossEntropyBackward {
  Tensor mean_dx, mean_dweight;  // what the forward made; each absent with its output
  Tensor dloss;                  // (1)
  Tensor dx, dweight;            // outputs; each may be absent
  bool add_dx = false, add_dweight = false;
};

namespace ref {
void cross_entropy_forward(const CrossEntropyForward&, Threads&);
void cross_entropy_backward(const CrossEntropyBackward&, Threads&);
void linear_cross_entropy_forward(const LinearCrossEntropyForward&, Threads&);
void linear_cross_entropy_backward(const LinearCrossEntropyBackward&, Threads&);
}  // namespace ref
namespace cpu {
void cross_entropy_forward(const CrossEntropyForward&, Threads&);
void cross_entropy_backward(const CrossEntropyBackward&, Threads&);
void linear_cross_entropy_forward(const LinearCrossEntropyForward&, Threads&);
void linear_cross_entropy_backward(const LinearCrossEntropyBackward&, Threads&);
}  // namespace cpu
namespace cuda {
void cross_entropy_forward(const CrossEntropyForward&, Stream);
void cross_entropy_backward(const CrossEntropyBackward&, Stream);
void linear_cross_entropy_forward(const LinearCrossEntropyForward&, Stream);
void linear_cross_entropy_backward(const LinearCrossEntropyBackward&, Stream);
}  // namespace cuda

}  // namespace ssm
