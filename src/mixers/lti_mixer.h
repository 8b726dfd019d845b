// What S4 and S4D share: a linear time-invariant state space model in every channel, then GELU, a linear layer to twice
// the width and GLU, as S4Block of the published code. Parameters have its names and shapes.
//
// Trained as a convolution and run as a recurrence: which of the two a call is depends on what it carries.
#pragma once

#include <memory>
#include <string>

#include "mixers/mixer.h"
#include "ops/discretize/discretize.h"

namespace ssm {

struct LtiConfig : MixerConfig {
  int64_t d_state = 64;
  int64_t n_ssm = 0;  // copies of A, B and P that channels share; 0, written null: each channel its own
  double dt_min = 0.001, dt_max = 0.1;
  std::string dt_transform = "exp";
  double lr_dt = 0.001, lr_A = 0.001, lr_B = 0.001;

 protected:
  Fields shared_fields();
  void check_shared(int64_t d_model, bool paired) const;
  int64_t copies(int64_t d_model) const { return n_ssm > 0 ? n_ssm : d_model; }
};

// How A, B and P start; element i of A is mode i % modes of copy i / modes.
struct LtiStart {
  Init decay, frequency;       // -Re A and -Im A
  Init B = Init::constant(1);  // real parts; imaginary parts are 0
  Init P = Init::constant(0);
  bool real = false, low_rank = false;
  Discretization method = Discretization::zoh;
};

class LtiMixer final : public Mixer {
 public:
  LtiMixer(const Params& params, const LtiConfig& config, const LtiStart& start, int64_t d_model);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  StateSpace system(const Ctx& ctx) const;

  int64_t d_, parts_, modes_;
  DiscretizeIn parameters_;
  Var D_, output_, output_bias_;
  DType state_dtype_;
  mutable StateSpace kept_;  // of parameters that do not change
};

// Tokens of the longest sequence from which one that starts from zero is convolved.
inline constexpr int64_t kConvolveFrom = 128;

}  // namespace ssm
