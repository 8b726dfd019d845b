// Mamba's block (Gu & Dao 2023, "Linear-Time Sequence Modeling with Selective State Spaces", section 3.4 and figure 3)
// around an inner layer: S6, which makes it Mamba and with its norms FalconMamba (Zuo et al. 2024), or S4 or S4D, as in
// the paper's comparison of architectures (tables 1 and 6).
#pragma once

#include "mixers/inner/inner.h"
#include "mixers/mixer.h"

namespace ssm {

struct MambaConfig final : MixerConfig {
  int64_t d_conv = 4;
  int64_t expand = 2;
  int64_t d_inner = 0;  // 0: expand * d_model; FalconMamba's published files say another width beside their expand
  bool conv_bias = true, bias = false;
  InnerChoice inner{"S6"};
  bool use_fast_path = true;  // of the reference implementation; changes nothing here

  Fields fields() override;
  Fields deciding_fields() override { return {inner.field()}; }
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

class Mamba final : public Mixer {
 public:
  Mamba(const Params& params, const MambaConfig& config, int64_t d_model, int64_t layers);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  int64_t e_, w_;  // inner width, taps of the convolution
  DType state_dtype_;
  Var in_proj_, in_bias_, conv_weight_, conv_bias_, out_proj_, out_bias_;
  std::unique_ptr<InnerLayer> inner_;
};

}  // namespace ssm
