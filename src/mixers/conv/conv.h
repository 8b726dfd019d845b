// A causal gated convolution with a fixed kernel: Mamba's block without its state space model, so what a token does to
// later ones depends on their distance alone, and ends after d_conv of them. A baseline.
#pragma once

#include "mixers/mixer.h"

namespace ssm {

struct ConvConfig final : MixerConfig {
  int64_t d_conv = 16;
  int64_t expand = 2;
  bool conv_bias = true, bias = false;

  Fields fields() override;
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

class Conv final : public Mixer {
 public:
  Conv(const Params& params, const ConvConfig& config, int64_t d_model, int64_t layers);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  int64_t e_, w_;  // inner width, taps
  DType state_dtype_;
  Var in_proj_, in_bias_, conv_weight_, conv_bias_, out_proj_, out_bias_;
};

}  // namespace ssm
