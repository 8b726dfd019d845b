// All that a block sees of its inner layer, and of its settings.
#pragma once

#include <memory>

#include "core/config.h"
#include "core/context.h"
#include "core/params.h"
#include "core/sequences.h"
#include "core/state.h"

namespace ssm {

class InnerLayer {
 public:
  virtual ~InnerLayer() = default;
  // x (t, e) -> y (t, e), or with z (t, e), which may be absent: y silu(z). `state` is this layer's entries, as in
  // Mixer::forward.
  virtual Var forward(const Ctx& ctx, const Var& x, const Var& z, const Seqs& seqs, State state) const = 0;
  virtual StateSpec state() const = 0;
  // Whether a backward may as well run it again: it saves much more than it works.
  virtual bool cheap_to_repeat() const { return false; }
};

class InnerConfig {
 public:
  virtual ~InnerConfig() = default;
  virtual Fields fields() = 0;
  // Declares the parameters of e channels under `params`, in a block of a model of width d_model. Throws Error on sizes
  // that make no sense.
  virtual std::unique_ptr<InnerLayer> build(const Params& params, int64_t e, int64_t d_model) const = 0;
};

}  // namespace ssm
