// What the inner layers S4 and S4D share: a linear time-invariant state space model in every channel. Parameters have
// the names and shapes of the published code.
//
// Trained as a convolution and run as a recurrence: which of the two a call is depends on whether it carries a state.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "mixers/inner/inner_layer.h"
#include "ops/discretize/discretize.h"

namespace ssm {

struct LtiConfig : InnerConfig {
  int64_t d_state = 64;
  int64_t n_ssm = 0;  // copies of A, B and P that channels share; 0, written null: each channel its own
  double dt_min = 0.001, dt_max = 0.1;
  std::string dt_transform = "exp";
  double lr_dt = 0.001, lr_A = 0.001, lr_B = 0.001;

 protected:
  Fields shared_fields();
  void check_shared(int64_t e, bool paired) const;
  int64_t copies(int64_t e) const { return n_ssm > 0 ? n_ssm : e; }
};

// How A, B and P start; element i of A is mode i % modes of copy i / modes.
struct LtiStart {
  Init decay, frequency;       // -Re A and -Im A
  Init B = Init::constant(1);  // real parts; imaginary parts are 0
  Init P = Init::constant(0);
  bool real = false, low_rank = false;
  Discretization method = Discretization::zoh;
};

// A matrix to start from that takes an eigen-decomposition: made when the first initial value is asked for, which a
// model that is read from a file never does.
template <class Matrix>
class WhenAsked {
 public:
  explicit WhenAsked(std::function<Matrix()> make) : make_(std::move(make)) {}
  const Matrix& get() {
    std::call_once(once_, [this] { matrix_ = make_(); });
    return matrix_;
  }

 private:
  std::function<Matrix()> make_;
  std::once_flag once_;
  Matrix matrix_;
};

class Lti final : public InnerLayer {
 public:
  Lti(const Params& params, const LtiConfig& config, const LtiStart& start, int64_t e);
  Var forward(const Ctx& ctx, const Var& x, const Var& z, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  StateSpace system(const Ctx& ctx) const;

  int64_t e_, parts_, modes_;
  DiscretizeIn parameters_;
  Var D_;
  DType state_dtype_;
  mutable StateSpace kept_;  // of parameters that do not change
};

// Tokens of the longest sequence from which a call without a state is a convolution (README.md).
inline constexpr int64_t kConvolveFrom = 128;

}  // namespace ssm
