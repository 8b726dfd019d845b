// S6, Mamba's selective state space model (Gu & Dao 2023, algorithm 2), as an inner layer: the step size and the maps
// into and out of the state are made from the token. With B, C and dt normalised before they are used it is that of
// FalconMamba (Zuo et al. 2024).
#pragma once

#include "mixers/inner/inner_layer.h"

namespace ssm {

struct S6Config final : InnerConfig {
  int64_t d_state = 16;
  int64_t dt_rank = 0;  // 0: "auto", ceil(d_model / 16)
  double dt_min = 0.001, dt_max = 0.1;
  std::string dt_init = "random";
  double dt_scale = 1.0, dt_init_floor = 1e-4;
  double b_c_dt_rms_eps = 0;  // FalconMamba: B, C and dt are normalised without weight, with this epsilon; 0: not
  // What depends on the token, of dt, B and C in this order: "dtBC", "dtB", ..., "none". The others are learned and the
  // same for every token: dt its bias alone, B and C vectors (n), as in the paper's ablation (table 7).
  std::string selective = "dtBC";

  Fields fields() override;
  std::unique_ptr<InnerLayer> build(const Params& params, int64_t e, int64_t d_model) const override;
};

class S6 final : public InnerLayer {
 public:
  S6(const Params& params, const S6Config& config, int64_t e, int64_t d_model);
  Var forward(const Ctx& ctx, const Var& x, const Var& z, const Seqs& seqs, State state) const override;
  StateSpec state() const override;
  // x, dt, B and C are the most there is to save, and little work next to the projections around them.
  bool cheap_to_repeat() const override { return true; }

 private:
  Var normed(const Ctx& ctx, const Var& x) const;
  Tensor kept_rates(const Ctx& ctx) const;
  struct StepMaps {
    Var dt, B, C;
  };
  StepMaps step_maps(const Ctx& ctx, const Var& x) const;

  int64_t e_, n_, r_;      // channels, states, rank of dt
  double b_c_dt_rms_eps_;  // 0: no norm
  DType state_dtype_;
  Var x_proj_, dt_proj_, dt_bias_, A_log_, D_;
  Var B_, C_;             // (n, 1): where they do not depend on the token
  mutable Tensor rates_;  // scan_rates of A_log_, once a call without a tape has made them
};

}  // namespace ssm
