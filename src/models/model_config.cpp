// Reading and writing config.json, and the presets.
#include "models/model_config.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "models/huggingface.h"

namespace ssm {
namespace {

// The house's own words. The reference implementation refuses keys it does not know, so they are written only where
// they say something.
constexpr std::array<std::string_view, 8> kHouseWords = {
    "norm_epsilon", "eos_token_id", "d_inner", "b_c_dt_rms_eps", "selective", "inner", "alibi", "learned_positions"};

using Json = nlohmann::ordered_json;

void drop_silent_words(Json& json, const Json& silent) {
  for (const std::string_view word : kHouseWords)
    if (const auto found = json.find(word); found != json.end() && silent.contains(word) && *found == silent[word])
      json.erase(found);
}

}  // namespace

ModelConfig::ModelConfig() : mixer(mixer_kind(layer).config()), attention(mixer_kind(kAttention).config()) {}

Fields ModelConfig::fields() {
  const auto mixer_fields = [this] {
    Fields all = {{"layer", &layer, "the mixer of every block"}};
    // The kind comes first: its other fields are the kind's own.
    for (Field& field : mixer->fields()) all.push_back(std::move(field));
    return all;
  };
  const auto attention_fields = [this] { return attn_layer_idx.empty() ? Fields{} : attention->fields(); };
  return {{.name = "d_model", .target = &d_model, .help = "model width", .required = true},
          {"d_intermediate", &d_intermediate, "width of the MLP after each mixer; 0: none"},
          {.name = "n_layer", .target = &n_layer, .help = "blocks", .required = true},
          {.name = "vocab_size", .target = &vocab_size, .help = "tokens the tokenizer knows", .required = true},
          {.name = "ssm_cfg", .target = Field::Nested(mixer_fields), .help = "the mixer"},
          {"attn_layer_idx", &attn_layer_idx, "blocks that hold attention instead"},
          {.name = "attn_cfg", .target = Field::Nested(attention_fields), .help = "that attention"},
          {"rms_norm", &rms_norm, "RMSNorm (true) or LayerNorm"},
          {"residual_in_fp32", &residual_in_fp32, "the residual stream is f32 (it always is here)"},
          {"fused_add_norm", &fused_add_norm, "of the reference implementation; without effect"},
          {"pad_vocab_size_multiple", &pad_vocab_size_multiple, "the embedding's rows are rounded up to this"},
          {"tie_embeddings", &tie_embeddings, "the head is the embedding"},
          {"norm_epsilon", &norm_epsilon, "of the norms between blocks"},
          {"eos_token_id", &eos_token_id, "any of these tokens ends a text"},
          {"learned_positions", &learned_positions, "rows of a table of positions, added to the embedding; 0: none"}};
}

int64_t ModelConfig::padded_vocab() const {
  return (vocab_size + pad_vocab_size_multiple - 1) / pad_vocab_size_multiple * pad_vocab_size_multiple;
}

bool ModelConfig::attends(int64_t i) const {
  return std::find(attn_layer_idx.begin(), attn_layer_idx.end(), i) != attn_layer_idx.end();
}

std::string ModelConfig::json() const {
  ModelConfig copy = *this, silent;  // a list of fields points into what may be written to
  silent.mixer = mixer_kind(layer).config();
  silent.attn_layer_idx = {0};  // or attn_cfg would be empty
  Json json = Json::parse(write_json(copy.fields()));
  const Json defaults = Json::parse(write_json(silent.fields()));
  drop_silent_words(json, defaults);
  drop_silent_words(json["ssm_cfg"], defaults["ssm_cfg"]);
  drop_silent_words(json["attn_cfg"], defaults["attn_cfg"]);
  return json.dump(2) + "\n";
}

ModelConfig ModelConfig::from_json(std::string_view json, std::string_view where) {
  return is_huggingface(json, where) ? from_huggingface(json, where) : from_state_spaces(json, where);
}

ModelConfig ModelConfig::from_state_spaces(std::string_view json, std::string_view where) {
  ModelConfig config;
  // ssm_cfg.layer decides which keys ssm_cfg may have, so it is read on its own first.
  const auto only_layer = [&config] { return Fields{{"layer", &config.layer, ""}}; };
  read_json({{.name = "ssm_cfg", .target = Field::Nested(only_layer)}}, json, where, UnknownKeys::are_skipped);
  try {
    config.mixer = mixer_kind(config.layer).config();
  } catch (const Error& problem) {
    throw Error(where, ": ssm_cfg.layer, in layer 0 and all others: ", problem.what());
  }
  const auto deciding = [&config] { return config.mixer->deciding_fields(); };
  read_json({{.name = "ssm_cfg", .target = Field::Nested(deciding)}}, json, where, UnknownKeys::are_skipped);
  // Which keys attn_cfg may have depends on whether any layer attends, and what it leaves out is the reference's
  // default.
  read_json({{"attn_layer_idx", &config.attn_layer_idx, ""}}, json, where, UnknownKeys::are_skipped);
  read_json(config.attention->fields(), R"({"causal": false})", where);
  read_json(config.fields(), json, where);

  const auto within = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, where, ": ", name, " is ", value, ", expected ", low, " to ", high);
  };
  within("d_model", config.d_model, 1, 1 << 20);
  within("n_layer", config.n_layer, 1, 1 << 16);
  within("vocab_size", config.vocab_size, 1, 1 << 28);
  within("pad_vocab_size_multiple", config.pad_vocab_size_multiple, 1, 1 << 20);
  within("d_intermediate", config.d_intermediate, 0, 1 << 24);
  within("learned_positions", config.learned_positions, 0, 1 << 28);
  std::vector<int64_t> attending = config.attn_layer_idx;
  std::sort(attending.begin(), attending.end());
  for (size_t i = 0; i < attending.size(); ++i) {
    require(0 <= attending[i] && attending[i] < config.n_layer, where, ": attn_layer_idx names layer ", attending[i],
            ", expected 0 to ", config.n_layer - 1);
    require(i == 0 || attending[i] != attending[i - 1], where, ": attn_layer_idx names layer ", attending[i], " twice");
  }
  require(config.rms_norm, where, ": rms_norm is false; this version has RMSNorm only");
  require(config.norm_epsilon > 0 && config.norm_epsilon < 1, where, ": norm_epsilon is ", config.norm_epsilon,
          ", expected a small positive number");
  return config;
}

const std::vector<Preset>& presets() {
  // The published sizes (Gu & Dao 2023, table 12, with twice the Transformer's layers), then small ones for CPUs.
  constexpr const char *kMamba = "mamba", *kMamba2 = "mamba2";
  static const std::vector<Preset> all = {
      {"mamba-130m", "the published 130M", kMamba, 768, 24, 50277},
      {"mamba-370m", "the published 370M", kMamba, 1024, 48, 50277},
      {"mamba-790m", "the published 790M", kMamba, 1536, 48, 50277},
      {"mamba-1.4b", "the published 1.4B", kMamba, 2048, 48, 50277},
      {"mamba-2.8b", "the published 2.8B", kMamba, 2560, 64, 50277},
      {"mamba2-130m", "the published Mamba-2 130M", kMamba2, 768, 24, 50277, 16},
      {"mamba2-370m", "the published Mamba-2 370M", kMamba2, 1024, 48, 50277, 16},
      {"mamba2-780m", "the published Mamba-2 780M", kMamba2, 1536, 48, 50277, 16},
      {"mamba2-1.3b", "the published Mamba-2 1.3B", kMamba2, 2048, 48, 50277, 16},
      {"mamba2-2.7b", "the published Mamba-2 2.7B", kMamba2, 2560, 64, 50277, 16},
      {"transformerpp-125m", "the papers' Transformer++, 125M", kMamba, 768, 12, 50277, 16, 12, 2048},
      {"transformerpp-350m", "the papers' Transformer++, 350M", kMamba, 1024, 24, 50277, 16, 16, 2816},
      {"transformerpp-760m", "the papers' Transformer++, 760M", kMamba, 1536, 24, 50277, 16, 16, 4096},
      {"transformerpp-1.3b", "the papers' Transformer++, 1.3B", kMamba, 2048, 24, 50277, 16, 32, 5504},
      {"bytes-1m", "bytes, 1.0M parameters: seconds to try", kMamba, 128, 8, 256},
      {"bytes-10m", "bytes, 9.6M parameters: an evening on a laptop", kMamba, 384, 10, 256},
      {"bytes-mamba2-1m", "bytes with Mamba-2, 1.1M parameters", kMamba2, 128, 8, 256},
      {"bytes-mamba2-10m", "bytes with Mamba-2, 10.0M parameters", kMamba2, 384, 10, 256},
      {"bytes-s4-1m", "bytes with S4, 1.1M parameters", "s4", 128, 16, 256},
      {"bytes-s4d-1m", "bytes with S4D, 1.0M parameters", "s4d", 128, 16, 256},
      {"bytes-s6-1m", "bytes with S6 in S4's block, 1.0M parameters", "s6", 128, 24, 256},
      {"bytes-h3-1m", "bytes with H3 around S4D, 1.0M parameters", "h3-s4d", 128, 10, 256},
      {"bytes-transformerpp-1m", "bytes with a Transformer++, 1.1M parameters", kMamba, 128, 5, 256, 8, 4, 384},
      {"bytes-transformerpp-10m", "bytes with a Transformer++, 10.7M parameters", kMamba, 384, 6, 256, 8, 6, 1024},
  };
  return all;
}

ModelConfig ModelConfig::preset(std::string_view name) {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) {
    names.push_back(preset.name);
    if (preset.name != name) continue;
    ModelConfig config;
    const MixerName& mixer = mixer_named(preset.mixer);
    config.layer = mixer.layer;
    config.mixer = mixer.config();
    config.d_model = preset.d_model;
    config.n_layer = preset.n_layer;
    config.vocab_size = preset.vocab_size;
    config.pad_vocab_size_multiple = preset.pad_vocab_size_multiple;
    config.d_intermediate = preset.d_intermediate;
    if (preset.heads == 0) return config;
    for (int64_t i = 0; i < preset.n_layer; ++i) config.attn_layer_idx.push_back(i);
    read_json(config.attention->fields(),
              text(R"({"num_heads": )", preset.heads, R"(, "rotary_emb_dim": )", preset.d_model / preset.heads,
                   R"(, "qkv_proj_bias": false, "out_proj_bias": false})"),
              preset.name);
    return config;
  }
  std::string known;
  for (const std::string& one : names) known += (known.empty() ? "" : ", ") + one;
  const std::string near = nearest(name, names);
  throw Error("no preset is called ", name, near.empty() ? "" : "; did you mean " + near + "?", " (known: ", known,
              ")");
}

}  // namespace ssm
