// The block of S4's published code, around S4, S4D or S6: the inner layer in every channel of the model, GELU, a linear
// layer to twice the width, GLU. It has no gate on the inner layer, so Gu & Dao 2023 (table 1) call it "no gate".
// Parameters have the published names.
#pragma once

#include "mixers/inner/inner.h"
#include "mixers/mixer.h"

namespace ssm {

struct S4BlockConfig final : MixerConfig {
  InnerChoice inner;

  explicit S4BlockConfig(std::string of_inner) : inner(std::move(of_inner)) {}
  Fields fields() override { return inner.chosen().fields(); }
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;
};

class S4Block final : public Mixer {
 public:
  S4Block(const Params& params, const InnerConfig& inner, int64_t d_model);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override { return inner_->state(); }

 private:
  std::unique_ptr<InnerLayer> inner_;
  Var output_, output_bias_;
};

}  // namespace ssm
