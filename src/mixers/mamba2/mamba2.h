// Mamba-2 (Dao & Gu 2024, "Transformers are SSMs", section 7 and figure 6): one projection for everything, one
// convolution over x, B and C, the SSD layer, a gated norm.
#pragma once

#include <limits>

#include "mixers/mixer.h"

namespace ssm {

struct Mamba2Config final : MixerConfig {
  int64_t d_state = 128;
  int64_t d_conv = 4;
  double conv_init = kNull;  // bound of the initial conv1d.weight; null: the layer's default
  int64_t expand = 2;
  int64_t headdim = 64;
  int64_t d_ssm = 0;  // channels of the SSD layer; 0, written null: all, expand * d_model
  int64_t ngroups = 1;
  std::vector<double> A_init_range = {1, 16};
  bool D_has_hdim = false;  // D of channels instead of heads
  bool rmsnorm = true, norm_before_gate = false;
  double norm_epsilon = 1e-5;
  double dt_min = 0.001, dt_max = 0.1, dt_init_floor = 1e-4;
  std::vector<double> dt_limit = {0, std::numeric_limits<double>::infinity()};
  bool bias = false, conv_bias = true;
  // Of the reference implementation; these change nothing here.
  int64_t chunk_size = 256;
  bool use_mem_eff_path = true, sequence_parallel = true;
  double process_group = kNull;

  Fields fields() override;
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;

 private:
  static constexpr double kNull = std::numeric_limits<double>::quiet_NaN();  // read and written as null
};

class Mamba2 final : public Mixer {
 public:
  Mamba2(const Params& params, const Mamba2Config& config, int64_t d_model, int64_t layers);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  Mamba2Config config_;
  int64_t e_, rest_;           // channels of the SSD layer, and those beside it
  int64_t m_, p_, g_, n_, w_;  // heads, their width, groups, states, taps of the convolution
  DType state_dtype_;
  Var in_proj_, in_bias_, conv_weight_, conv_bias_, dt_bias_, A_log_, D_, norm_, out_proj_, out_bias_;
};

}  // namespace ssm
