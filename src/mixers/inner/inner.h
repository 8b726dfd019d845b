// The layer inside a block that carries a sequence's past: S4, S4D or S6. A block (no gate, H3, Mamba) projects,
// convolves and gates around one, and any of the three fits into any block. Adding one is a folder beside s4/ and a
// line in inner.cpp.
#pragma once

#include <string>

#include "mixers/inner/inner_layer.h"
#include "mixers/s4/s4.h"
#include "mixers/s4d/s4d.h"
#include "mixers/s6/s6.h"

namespace ssm {

// Which inner layer, and its settings: `inner` decides which of the three the other fields are of.
struct InnerChoice {
  std::string inner;
  S4Config s4;
  S4dConfig s4d;
  S6Config s6;

  explicit InnerChoice(std::string default_inner) : inner(std::move(default_inner)) {}
  Field field() { return {"inner", &inner, "the inner layer: S4, S4D or S6"}; }
  const InnerConfig& chosen() const;  // throws Error with the known names
  InnerConfig& chosen();
};

}  // namespace ssm
