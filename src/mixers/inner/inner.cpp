// Every inner layer, by name.
#include "mixers/inner/inner.h"

#include <utility>

#include "core/error.h"

namespace ssm {

const InnerConfig& InnerChoice::chosen() const {
  if (inner == "S4") return s4;
  if (inner == "S4D") return s4d;
  if (inner == "S6") return s6;
  throw Error("ssm_cfg: inner is \"", inner, "\", expected S4, S4D or S6");
}

InnerConfig& InnerChoice::chosen() { return const_cast<InnerConfig&>(std::as_const(*this).chosen()); }

}  // namespace ssm
