// Every mixer, one line each. A table and not self-registration: the linker drops objects of a static library that
// nobody names.
#include "core/error.h"
#include "mixers/attention/attention.h"
#include "mixers/conv/conv.h"
#include "mixers/lstm/lstm.h"
#include "mixers/mamba/mamba.h"
#include "mixers/mamba2/mamba2.h"
#include "mixers/mixer.h"
#include "mixers/s4/s4.h"
#include "mixers/s4d/s4d.h"

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
      {"S4", "structured state space model, diagonal and rank one (Gu et al. 2021)",
       [] { return std::unique_ptr<MixerConfig>(new S4Config); }, RunsOn::host},
      {"S4D", "diagonal state space model (Gu et al. 2022)", [] { return std::unique_ptr<MixerConfig>(new S4dConfig); },
       RunsOn::host},
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

}  // namespace ssm
