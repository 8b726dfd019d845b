// Mamba (Gu & Dao 2023, "Linear-Time Sequence Modeling with Selective State Spaces", section 3.4 and figure 3), and
// FalconMamba (Zuo et al. 2024), which is the same with B, C and dt normalised before they are used.
#pragma once

#include "mixers/mixer.h"

namespace ssm {

struct MambaConfig final : MixerConfig {
  int64_t d_state = 16;
  int64_t d_conv = 4;
  int64_t expand = 2;
  int64_t d_inner = 0;  // 0: expand * d_model; FalconMamba's published files say another width beside their expand
  int64_t dt_rank = 0;  // 0: "auto", ceil(d_model / 16)
  double dt_min = 0.001, dt_max = 0.1;
  std::string dt_init = "random";
  double dt_scale = 1.0, dt_init_floor = 1e-4;
  bool conv_bias = true, bias = false;
  double b_c_dt_rms_eps = 0;  // FalconMamba: B, C and dt are normalised without weight, with this epsilon; 0: not
  // What depends on the token, of dt, B and C in this order: "dtBC", "dtB", ..., "none". The others are learned and the
  // same for every token: dt its bias alone, B and C vectors (n), as in the paper's ablation (table 7).
  std::string selective = "dtBC";
  bool use_fast_path = true;  // of the reference implementation; changes nothing here

  Fields fields() override;
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

class Mamba final : public Mixer {
 public:
  Mamba(const Params& params, const MambaConfig& config, int64_t d_model, int64_t layers);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  Var normed(const Ctx& ctx, const Var& x) const;
  Tensor kept_rates(const Ctx& ctx) const;
  struct StepMaps {
    Var dt, B, C;
  };
  StepMaps step_maps(const Ctx& ctx, const Var& x) const;

  int64_t e_, n_, r_, w_;  // inner width, states, rank of dt, taps of the convolution
  double b_c_dt_rms_eps_;  // 0: no norm
  DType state_dtype_;
  Var in_proj_, in_bias_, conv_weight_, conv_bias_, x_proj_, dt_proj_, dt_bias_, A_log_, D_, out_proj_, out_bias_;
  Var B_, C_;             // (n, 1): where they do not depend on the token
  mutable Tensor rates_;  // scan_rates of A_log_, once a call without a tape has made them
};

}  // namespace ssm
