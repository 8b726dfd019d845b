// The attention mixer: parameters with their initial values, and the forward pass.
#include "mixers/attention/attention.h"

#include <cmath>

#include "ops/attention/attention.h"
#include "ops/conv1d/conv1d.h"
#include "ops/gated_rms_norm/gated_rms_norm.h"
#include "ops/linear/linear.h"

namespace ssm {

Fields AttentionConfig::fields() {
  return {{"num_heads", &num_heads, "heads of queries"},
          {.name = "num_heads_kv",
           .target = &num_heads_kv,
           .help = "heads of keys and values; null: as many",
           .word = "null",
           .word_value = 0},
          {.name = "head_dim",
           .target = &head_dim,
           .help = "width of a head; null: d_model / num_heads",
           .word = "null",
           .word_value = 0},
          {"mlp_dim", &mlp_dim, "width of a gated MLP beside the heads, rounded up to 256; 0: none"},
          {"qkv_proj_bias", &qkv_proj_bias, "bias in in_proj"},
          {"out_proj_bias", &out_proj_bias, "bias in out_proj"},
          {"softmax_scale", &softmax_scale, "factor on scores; null: 1 / sqrt(head_dim)"},
          {"causal", &causal, "tokens see none after themselves (nothing else is possible here)"},
          {"d_conv", &d_conv, "taps of a causal convolution over q, k and v; 0: none"},
          {"rotary_emb_dim", &rotary_emb_dim, "channels of a head with rotary positions; 0: none"},
          {"rotary_emb_base", &rotary_emb_base, "of the rotation's rates"},
          {"rotary_emb_interleaved", &rotary_emb_interleaved, "neighbouring channels are turned together"},
          {"alibi", &alibi, "scores fall with distance, by a slope a head (ALiBi)"}};
}

std::unique_ptr<Mixer> AttentionConfig::build(const Params& params, int64_t d_model, int64_t layers) const {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, "attention: ", name, " is ", value, ", expected ", low, " to ", high);
  };
  require(causal,
          "attention: causal is false, also when it is left out; expected true: a model that reads on cannot "
          "look ahead");
  within("num_heads", num_heads, 1, 1 << 16);
  within("num_heads_kv", num_heads_kv, 0, num_heads);
  require(num_heads_kv == 0 || num_heads % num_heads_kv == 0, "attention: num_heads_kv is ", num_heads_kv,
          ", expected a divisor of num_heads, ", num_heads);
  within("head_dim", head_dim, 0, 1 << 16);
  require(head_dim > 0 || d_model % num_heads == 0, "attention: num_heads is ", num_heads,
          ", expected a divisor of d_model, ", d_model, ", or a head_dim");
  const int64_t width = head_dim > 0 ? head_dim : d_model / num_heads;
  within("mlp_dim", mlp_dim, 0, 1 << 24);
  within("d_conv", d_conv, 0, 1 << 16);
  within("rotary_emb_dim", rotary_emb_dim, 0, width);
  require(rotary_emb_dim % 2 == 0, "attention: rotary_emb_dim is ", rotary_emb_dim, ", expected an even number");
  require(rotary_emb_base > 0 && std::isfinite(rotary_emb_base), "attention: rotary_emb_base is ", rotary_emb_base,
          ", expected a positive number");
  require(std::isnan(softmax_scale) || (softmax_scale > 0 && std::isfinite(softmax_scale)),
          "attention: softmax_scale is ", softmax_scale, ", expected a positive number or null");
  return std::make_unique<Attention>(params, *this, d_model, layers);
}

Attention::Attention(const Params& params, const AttentionConfig& config, int64_t d_model, int64_t layers)
    : m_(config.num_heads),
      g_(config.num_heads_kv > 0 ? config.num_heads_kv : config.num_heads),
      p_(config.head_dim > 0 ? config.head_dim : d_model / config.num_heads),
      w_(config.d_conv),
      mlp_((config.mlp_dim + 255) / 256 * 128),
      scale_(std::isnan(config.softmax_scale) ? 1 / std::sqrt(static_cast<double>(p_)) : config.softmax_scale),
      rotation_{
          .dim = config.rotary_emb_dim, .base = config.rotary_emb_base, .interleaved = config.rotary_emb_interleaved},
      alibi_(config.alibi),
      state_dtype_(params.dtype() == DType::f64 ? DType::f64 : DType::f32),
      // What activations are kept in.
      kv_dtype_(params.device().is_cuda() ? params.dtype() : state_dtype_) {
  const Init zero = Init::constant(0);
  const Flags f32{.keep_f32 = true}, f32_no_decay{.no_decay = true, .keep_f32 = true};
  const int64_t qkv = (m_ + 2 * g_) * p_, projected = qkv + 2 * mlp_, inner = m_ * p_ + mlp_;
  in_proj_ = params.get("in_proj.weight", {projected, d_model}, Init::fan_in(d_model));
  if (config.qkv_proj_bias) in_bias_ = params.get("in_proj.bias", {projected}, zero, f32_no_decay);
  if (w_ > 0) {
    conv_weight_ = params.get("conv1d.weight", {qkv, 1, w_}, Init::fan_in(w_), f32);
    conv_bias_ = params.get("conv1d.bias", {qkv}, Init::fan_in(w_), f32_no_decay);
  }
  // One residual branch a layer: their sum keeps its size at any depth (GPT-2's rule, as the reference applies it).
  out_proj_ =
      params.get("out_proj.weight", {d_model, inner}, Init::fan_in(inner, 1 / std::sqrt(static_cast<double>(layers))));
  if (config.out_proj_bias) out_bias_ = params.get("out_proj.bias", {d_model}, zero, f32_no_decay);
}

Var Attention::forward(const Ctx& ctx, const Var& u, const Seqs& seqs, State state) const {
  const size_t first = w_ > 0 ? 1 : 0;
  Var* const conv_state = state.empty() || w_ == 0 ? nullptr : &state[0];
  Var* const counts = state.empty() ? nullptr : &state[first];
  Var* const kv = state.empty() ? nullptr : &state[first + 1];
  const int64_t queries = m_ * p_, keys = g_ * p_;

  Var qkv = linear(ctx, u, in_proj_, in_bias_), up, gate_of_up;
  if (mlp_ > 0) {
    const auto parts = split(ctx, qkv, {queries + 2 * keys, mlp_, mlp_});
    qkv = parts[0], up = parts[1], gate_of_up = parts[2];
  }
  if (w_ > 0) qkv = conv1d(ctx, qkv, conv_weight_, conv_bias_, Activation::none, seqs, conv_state);
  Var q, k, v;  // (t, m p), (t, g p), (t, g p)
  if (rotation_.dim > 0) {
    const auto qk_v = split(ctx, qkv, {queries + keys, keys});
    const auto before = token_counts(counts ? counts->value : Tensor(), seqs);
    const auto qk = split(ctx, rope(ctx, qk_v[0], m_ + g_, rotation_, seqs, before), {queries, keys});
    q = qk[0], k = qk[1], v = qk_v[1];
  } else {
    const auto parts = split(ctx, qkv, {queries, keys, keys});
    q = parts[0], k = parts[1], v = parts[2];
  }
  Var out = attention(ctx, {q, k, v, m_, g_, scale_, alibi_}, seqs, counts, kv);  // (t, m p)
  if (mlp_ > 0) out = join(ctx, out, gate(ctx, up, gate_of_up));                  // (t, m p + mlp)
  return linear(ctx, out, out_proj_, out_bias_);                                  // (t, d)
}

StateSpec Attention::state() const {
  StateSpec spec;
  if (w_ > 0) spec.push_back({"conv", {w_ - 1, (m_ + 2 * g_) * p_}, state_dtype_});
  spec.push_back({"tokens", {1}, DType::i64});
  spec.push_back({"kv", {2 * g_ * p_}, kv_dtype_, true});
  return spec;
}

}  // namespace ssm
