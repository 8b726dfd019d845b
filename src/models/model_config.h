// What a language model is made of: config.json of the state-spaces kind, with the published defaults, and the few
// words that kind has not. A config.json of transformers is translated into this one (models/huggingface.h).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "core/files.h"
#include "mixers/mixer.h"

namespace ssm {

constexpr const char* kAttention = "Attention";  // the mixer of the layers in attn_layer_idx

struct ModelConfig {
  int64_t d_model = 2560;
  int64_t d_intermediate = 0;  // width of the MLP after each mixer; 0: none
  int64_t n_layer = 64;
  int64_t vocab_size = 50277;
  std::string layer = "Mamba1";            // ssm_cfg.layer
  std::shared_ptr<MixerConfig> mixer;      // the rest of ssm_cfg
  std::vector<int64_t> attn_layer_idx;     // layers that hold attention instead
  std::shared_ptr<MixerConfig> attention;  // attn_cfg
  bool rms_norm = true, residual_in_fp32 = true, fused_add_norm = true;
  int64_t pad_vocab_size_multiple = 8;
  bool tie_embeddings = true;
  // Words of the house, written only where they differ from what every state-spaces checkpoint means:
  double norm_epsilon = 1e-5;         // of the norms of blocks and the final one
  std::vector<int64_t> eos_token_id;  // any of these ends a text; empty: the tokenizer knows
  int64_t learned_positions = 0;      // longest sequence of a model whose embedding has positions, as GPT-2's; 0: none

  ModelConfig();
  // Rows of the embedding: vocab_size rounded up to pad_vocab_size_multiple. The rows past vocab_size are live.
  int64_t padded_vocab() const;
  bool attends(int64_t layer) const;  // is in attn_layer_idx
  std::string json() const;
  // A config.json of either kind. Throws Error naming `where` on JSON that is wrong, and on what this version does not
  // have.
  static ModelConfig from_json(std::string_view json, std::string_view where);
  static ModelConfig preset(std::string_view name);

 private:
  static ModelConfig from_state_spaces(std::string_view json, std::string_view where);
  Fields fields();
};

struct Preset {
  std::string name, summary, mixer;  // mixer: as --mixer names it
  int64_t d_model, n_layer, vocab_size, pad_vocab_size_multiple = 8;
  int64_t heads = 0;  // of attention in every layer, with rotary positions and no biases; 0: `mixer` everywhere
  int64_t d_intermediate = 0;
};
const std::vector<Preset>& presets();

}  // namespace ssm
