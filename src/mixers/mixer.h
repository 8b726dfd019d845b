// A mixer is what mixes tokens inside a block: Mamba, attention, an LSTM. This is all the rest of the house sees of
// one. Adding one is a folder beside mamba/ and a line in registry.cpp; laws, checkpoints, flags and benches follow.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "core/context.h"
#include "core/params.h"
#include "core/sequences.h"
#include "core/state.h"

namespace ssm {

class Mixer {
 public:
  virtual ~Mixer() = default;
  // u (t, d) -> (t, d). `state`: this mixer's entries, read and advanced (core/state.h); empty starts at zero and keeps
  // nothing. Whole sequences, chunks and single tokens are this one call.
  virtual Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const = 0;
  virtual StateSpec state() const = 0;
};

// The settings of a mixer: one field list gives config.json's ssm_cfg, flags, help and printing.
class MixerConfig {
 public:
  virtual ~MixerConfig() = default;
  virtual Fields fields() = 0;
  // Those that decide which others there are, to be set first.
  virtual Fields deciding_fields() { return {}; }
  // Declares the parameters under `params` (names are the reference implementation's) and returns the mixer of one of
  // `layers` equal blocks of width d_model. Throws Error on sizes that make no sense.
  virtual std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const = 0;
};

enum class RunsOn { host, host_and_gpu };

struct MixerKind {
  std::string name;                          // as in ssm_cfg.layer
  std::string summary;                       // one line for help
  std::unique_ptr<MixerConfig> (*config)();  // the published defaults
  RunsOn runs_on = RunsOn::host_and_gpu;
};

const std::vector<MixerKind>& mixer_kinds();
const MixerKind& mixer_kind(std::string_view name);  // throws Error with the known names

// Sets a mixer's fields from a JSON object, the deciding ones first (core/config.h says the rest).
void read_settings(MixerConfig& config, std::string_view json, std::string_view where,
                   UnknownKeys unknown = UnknownKeys::are_errors);

// A mixer as --mixer names it: a kind and, where a block has a choice, its inner layer.
struct MixerName {
  std::string name;   // "mamba-s4"
  std::string layer;  // "Mamba1"
  std::string inner;  // "S4"; "": the kind has no choice, or its default is meant

  std::unique_ptr<MixerConfig> config() const;  // the kind's, with that inner layer
};

const std::vector<MixerName>& mixer_names();
// In any case of letters. Throws Error with the known names.
const MixerName& mixer_named(std::string_view name);

}  // namespace ssm
