// H3 (Dao et al. 2023, "Hungry Hungry Hippos: Towards Language Modeling with State Space Models", section 3), around
// S4, S4D or S6: an inner layer between two multiplications,
//
//   q, k, v = projections of u,   y = W (q * inner(shift(k) * v))
//
// where shift, a state space model that moves its state on by one place a token, is a causal convolution. One channel a
// head, as Gu & Dao 2023 (figure 3) have it.
#pragma once

#include "mixers/inner/inner.h"
#include "mixers/mixer.h"

namespace ssm {

struct H3Config final : MixerConfig {
  int64_t d_conv = 64;  // states of the shift
  InnerChoice inner{"S4D"};

  Fields fields() override;
  Fields deciding_fields() override { return {inner.field()}; }
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

class H3 final : public Mixer {
 public:
  H3(const Params& params, const H3Config& config, int64_t d_model);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  struct Projection {
    Var weight, bias;
  };

  int64_t d_, w_;  // width, taps of the shift
  DType state_dtype_;
  Projection q_, k_, v_, output_;
  Var shift_;
  std::unique_ptr<InnerLayer> inner_;
};

}  // namespace ssm
