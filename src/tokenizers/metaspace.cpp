#include "tokenizers/metaspace.h"

#include "core/error.h"

namespace ssm {

Metaspace read_metaspace(const Component& part) {
  Metaspace result{part.character("replacement"), Metaspace::Prepend::always, part.flag("split", true)};
  const std::string scheme = part.text("prepend_scheme", "always");
  if (scheme == "first")
    result.prepend = Metaspace::Prepend::first;
  else if (scheme == "never")
    result.prepend = Metaspace::Prepend::never;
  else if (scheme != "always")
    part.unsupported("the prepend_scheme " + scheme);
  if (!part.flag("add_prefix_space", true)) {
    require(!part.find("prepend_scheme") || scheme == "never", part.where(),
            ": add_prefix_space is false, but prepend_scheme is ", scheme, "; expected never");
    result.prepend = Metaspace::Prepend::never;
  }
  return result;
}

}  // namespace ssm
