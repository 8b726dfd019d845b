// S4D's settings, and how its diagonal starts. The layer itself is mixers/inner/lti.
#include "mixers/s4d/s4d.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "lti/hippo.h"

namespace ssm {
namespace {

// -Im A (copies, modes): `first` in the first copies, `rest` in the others.
Init frequencies(const std::string& first, const std::string& rest, int64_t first_copies, int64_t n) {
  const auto made = [n](const std::string& name) {
    return std::make_shared<WhenAsked<DiagonalModes>>([=] { return diagonal_modes(name, n); });
  };
  return Init::custom([modes = n / 2, first_copies, first = made(first), rest = made(rest)](const Rng&, int64_t i) {
    return (i / modes < first_copies ? first : rest)->get().frequency[static_cast<size_t>(i % modes)];
  });
}

}  // namespace

std::vector<std::string> s4d_inits() {
  std::vector<std::string> all = kDiagonalStarts;
  all.insert(all.end(), {"diag-rand", "diag"});
  return all;
}

Fields S4dConfig::fields() {
  Fields all = shared_fields();
  all.push_back({"init", &init, "initial A: diag-lin, -inv, -inv2, -quad, -real, -rand, -legs, or diag (inv and lin)"});
  all.push_back({"disc", &disc, "from the continuous system to the recurrence: zoh or bilinear"});
  all.push_back({"is_real", &is_real, "a real A, of d_state modes, instead of d_state / 2 pairs"});
  return all;
}

std::unique_ptr<InnerLayer> S4dConfig::build(const Params& params, int64_t e, int64_t) const {
  check_shared(e, !is_real);
  require(disc == "zoh" || disc == "bilinear", "ssm_cfg: disc is \"", disc, "\", expected zoh or bilinear");
  const std::vector<std::string> inits = s4d_inits();
  if (std::find(inits.begin(), inits.end(), init) == inits.end()) {
    std::string known;
    for (const std::string& one : inits) known += (known.empty() ? "" : ", ") + one;
    throw Error("ssm_cfg: init is \"", init, "\", expected one of ", known);
  }
  require(!is_real || init != "diag-legs",
          "ssm_cfg: init is diag-legs, whose B is of pairs; with is_real expected another");
  const int64_t modes = is_real ? d_state : d_state / 2;
  LtiStart start{.decay = Init::constant(0.5),
                 .frequency = Init::constant(0),
                 .real = is_real,
                 .method = disc == "zoh" ? Discretization::zoh : Discretization::bilinear};
  if (init == "diag-real")
    start.decay = Init::custom([modes](const Rng&, int64_t i) { return static_cast<double>(i % modes + 1); });
  else if (init == "diag-rand")
    start.frequency =
        Init::custom([](const Rng& rng, int64_t i) { return std::exp(rng.normal(static_cast<uint64_t>(i))); });
  else if (!is_real)
    start.frequency = init == "diag" ? frequencies("diag-inv", "diag-lin", copies(e) / 2, d_state)
                                     : frequencies(init, init, 0, d_state);
  if (init == "diag-legs") {
    const auto legs =
        std::make_shared<WhenAsked<DiagonalModes>>([n = d_state] { return diagonal_modes("diag-legs", n); });
    start.B = Init::custom([=](const Rng&, int64_t i) { return legs->get().B[static_cast<size_t>(i % modes)]; });
  }
  return std::make_unique<Lti>(params, *this, start, e);
}

}  // namespace ssm
