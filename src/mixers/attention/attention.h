// Attention as a mixer: the MHA of state-spaces (attn_cfg), by which its hybrids and its Transformer++ are made. Keys
// and values are carried as a state that grows by a row a token.
#pragma once

#include <limits>

#include "mixers/mixer.h"
#include "ops/rope/rope.h"

namespace ssm {

struct AttentionConfig final : MixerConfig {
  int64_t num_heads = 0;     // must be given
  int64_t num_heads_kv = 0;  // 0, written null: num_heads
  int64_t head_dim = 0;      // 0, written null: d_model / num_heads
  int64_t mlp_dim = 0;       // a gated MLP beside the heads, of this width rounded up to 256; 0: none
  bool qkv_proj_bias = true, out_proj_bias = true;
  double softmax_scale = kNull;  // null: 1 / sqrt(head_dim)
  bool causal = true;            // what published checkpoints say; false, the reference's default, is refused
  int64_t d_conv = 0;            // taps of a causal convolution over q, k and v, without activation; 0: none
  int64_t rotary_emb_dim = 0;    // channels of a head that are turned; 0: none
  double rotary_emb_base = 10000;
  bool rotary_emb_interleaved = false;
  bool alibi = false;  // a word of the house: scores fall with distance

  Fields fields() override;
  std::unique_ptr<Mixer> build(const Params& params, int64_t d_model, int64_t layers) const override;

 private:
  static constexpr double kNull = std::numeric_limits<double>::quiet_NaN();  // read and written as null
};

class Attention final : public Mixer {
 public:
  Attention(const Params& params, const AttentionConfig& config, int64_t d_model, int64_t layers);
  Var forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const override;
  StateSpec state() const override;

 private:
  int64_t m_, g_, p_, w_, mlp_;  // heads, those of keys, their width, taps (0: none), width of the MLP's two halves
  double scale_;
  Rotation rotation_;
  bool alibi_;
  DType state_dtype_, kv_dtype_;
  Var in_proj_, in_bias_, conv_weight_, conv_bias_, out_proj_, out_bias_;
};

}  // namespace ssm
