// An LSTM as a mixer: PyTorch's nn.LSTM of one layer under its names, and a projection back to the model's width.
#pragma once

#include "mixers/mixer.h"

namespace ssm {

struct LstmConfig final : MixerConfig {
  int64_t expand = 1;  // hidden width over model width
  bool bias = true;    // the two of nn.LSTM, and that of out_proj

  Fields fields() override;
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

class Lstm final : public Mixer {
 public:
  Lstm(const Params& params, const LstmConfig& config, int64_t d_model, int64_t layers);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  int64_t e_;  // hidden width
  DType state_dtype_;
  Var weight_ih_, weight_hh_, bias_ih_, bias_hh_, out_proj_, out_bias_;
};

}  // namespace ssm
