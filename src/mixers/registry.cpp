// Every mixer, one line each. A table and not self-registration: the linker drops objects of a static library that
// nobody names.
#include <algorithm>
#include <cctype>

#include "core/error.h"
#include "mixers/attention/attention.h"
#include "mixers/conv/conv.h"
#include "mixers/h3/h3.h"
#include "mixers/lstm/lstm.h"
#include "mixers/mamba/mamba.h"
#include "mixers/mamba2/mamba2.h"
#include "mixers/mixer.h"
#include "mixers/s4_block/s4_block.h"

namespace ssm {

const std::vector<MixerKind>& mixer_kinds() {
  static const std::vector<MixerKind> kinds = {
      {"Mamba1", "selective state space model S6 (Gu & Dao 2023)",
       [] { return std::unique_ptr<MixerConfig>(new MambaConfig); }},
      {"Mamba2", "state space dual model SSD (Dao & Gu 2024)",
       [] { return std::unique_ptr<MixerConfig>(new Mamba2Config); }},
      {"Attention", "causal attention with softmax, RoPE or ALiBi (Vaswani et al. 2017)",
       [] { return std::unique_ptr<MixerConfig>(new AttentionConfig); }},
      {"LSTM", "long short-term memory (Hochreiter & Schmidhuber 1997)",
       [] { return std::unique_ptr<MixerConfig>(new LstmConfig); }},
      {"Conv", "causal gated convolution with a fixed kernel",
       [] { return std::unique_ptr<MixerConfig>(new ConvConfig); }},
      {"S4", "S4's block around a diagonal and rank-one state space model (Gu et al. 2021)",
       [] { return std::unique_ptr<MixerConfig>(new S4BlockConfig("S4")); }},
      {"S4D", "S4's block around a diagonal state space model (Gu et al. 2022)",
       [] { return std::unique_ptr<MixerConfig>(new S4BlockConfig("S4D")); }},
      {"S6", "S4's block around the selective state space model of Mamba",
       [] { return std::unique_ptr<MixerConfig>(new S4BlockConfig("S6")); }},
      {"H3", "a state space model between two multiplications (Dao et al. 2023)",
       [] { return std::unique_ptr<MixerConfig>(new H3Config); }},
  };
  return kinds;
}

const MixerKind& mixer_kind(std::string_view name) {
  std::string known;
  for (const MixerKind& kind : mixer_kinds()) {
    if (kind.name == name) return kind;
    known += (known.empty() ? "" : ", ") + kind.name;
  }
  throw Error("no mixer is called \"", name, "\"; this version has: ", known);
}

void read_settings(MixerConfig& config, std::string_view json, std::string_view where, UnknownKeys unknown) {
  read_json(config.deciding_fields(), json, where, UnknownKeys::are_skipped);
  read_json(config.fields(), json, where, unknown);
}

const std::vector<MixerName>& mixer_names() {
  static const std::vector<MixerName> names = {
      {"mamba", "Mamba1", "S6"},
      {"mamba2", "Mamba2", ""},
      {"attention", "Attention", ""},
      {"lstm", "LSTM", ""},
      {"conv", "Conv", ""},
      {"s4", "S4", ""},
      {"s4d", "S4D", ""},
      {"s6", "S6", ""},
      {"h3-s4", "H3", "S4"},
      {"h3-s4d", "H3", "S4D"},
      {"h3-s6", "H3", "S6"},
      {"mamba-s4", "Mamba1", "S4"},
      {"mamba-s4d", "Mamba1", "S4D"},
  };
  return names;
}

const MixerName& mixer_named(std::string_view name) {
  const auto same = [](std::string_view a, std::string_view b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
  };
  std::string known;
  for (const MixerName& one : mixer_names()) {
    if (same(one.name, name)) return one;
    known += (known.empty() ? "" : ", ") + one.name;
  }
  throw Error("mixer is \"", name, "\", expected one of ", known);
}

std::unique_ptr<MixerConfig> MixerName::config() const {
  auto config = mixer_kind(layer).config();
  if (!inner.empty()) read_settings(*config, text(R"({"inner": ")", inner, R"("})"), name);
  return config;
}

}  // namespace ssm
