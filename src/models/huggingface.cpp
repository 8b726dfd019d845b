// One struct of the keys that count, and its translation in both directions.
#include "models/huggingface.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "mixers/mamba/mamba.h"
#include "mixers/mamba2/mamba2.h"

namespace ssm {
namespace {

enum class Kind { mamba, mamba2, falcon_mamba };

struct Architecture {
  Kind kind;
  std::string_view model_type, name;  // name: of the classes, MambaForCausalLM and MambaModel
};
constexpr std::array<Architecture, 3> kArchitectures = {{{Kind::mamba, "mamba", "Mamba"},
                                                         {Kind::mamba2, "mamba2", "Mamba2"},
                                                         {Kind::falcon_mamba, "falcon_mamba", "FalconMamba"}}};
constexpr std::string_view kHead = "ForCausalLM", kBare = "Model";

// The keys of transformers, with its defaults for mamba and falcon_mamba.
struct Published {
  std::string model_type;
  std::vector<std::string> architectures;
  int64_t vocab_size = 50280, hidden_size = 768, num_hidden_layers = 32, state_size = 16, conv_kernel = 4, expand = 2;
  int64_t intermediate_size = 0;  // 0: expand * hidden_size
  int64_t time_step_rank = 0;     // 0: "auto"
  double layer_norm_epsilon = 1e-5, mixer_rms_eps = 1e-6;
  double time_step_scale = 1, time_step_min = 0.001, time_step_max = 0.1, time_step_floor = 1e-4;
  std::string time_step_init_scheme = "random", hidden_act = "silu";
  std::vector<double> time_step_limit;
  int64_t num_heads = 128, head_dim = 64, n_groups = 8, chunk_size = 256;
  bool use_bias = false, use_conv_bias = true, tie_word_embeddings = true, residual_in_fp32 = true;
  std::vector<int64_t> eos_token_id = {0};

  // What this program does not have.
  std::vector<int64_t> attn_layer_idx;
  std::vector<std::string> layer_types;
  int64_t num_experts = 0, num_local_experts = 0, d_intermediate = 0;
  bool quantized = false;

  void take_defaults_of_mamba2() {
    vocab_size = 32768;
    hidden_size = 4096;
    num_hidden_layers = 64;
    state_size = 128;
    tie_word_embeddings = false;
    eos_token_id = {2};
    time_step_limit = {0, std::numeric_limits<double>::infinity()};
  }

  Fields fields() {
    const auto quantization = [this] {
      quantized = true;
      return Fields{};
    };
    return {{"vocab_size", &vocab_size, "rows of the embedding"},
            {"hidden_size", &hidden_size, "model width"},
            {"num_hidden_layers", &num_hidden_layers, "blocks"},
            {"state_size", &state_size, "states a channel"},
            {"conv_kernel", &conv_kernel, "taps of the convolution"},
            {"expand", &expand, "inner width over model width"},
            {"intermediate_size", &intermediate_size, "inner width"},
            {.name = "time_step_rank", .target = &time_step_rank, .help = "rank of dt", .word = "auto"},
            {"layer_norm_epsilon", &layer_norm_epsilon, "of the norms of blocks"},
            {"mixer_rms_eps", &mixer_rms_eps, "of the norms of B, C and dt"},
            {"time_step_scale", &time_step_scale, "initial dt_proj"},
            {"time_step_min", &time_step_min, "initial dt"},
            {"time_step_max", &time_step_max, "initial dt"},
            {"time_step_floor", &time_step_floor, "initial dt"},
            {"time_step_init_scheme", &time_step_init_scheme, "initial dt_proj"},
            {"time_step_limit", &time_step_limit, "bounds of dt"},
            {"num_heads", &num_heads, "heads"},
            {"head_dim", &head_dim, "channels of a head"},
            {"n_groups", &n_groups, "groups of heads"},
            {"chunk_size", &chunk_size, "of the scan; changes no number"},
            {"hidden_act", &hidden_act, "after the convolution"},
            {"use_bias", &use_bias, "in the projections"},
            {"use_conv_bias", &use_conv_bias, "in the convolution"},
            {"tie_word_embeddings", &tie_word_embeddings, "the head is the embedding"},
            {"residual_in_fp32", &residual_in_fp32, "the residual stream is f32"},
            {"eos_token_id", &eos_token_id, "ends a text"},
            {"attn_layer_idx", &attn_layer_idx, "attention"},
            {"layer_types", &layer_types, "attention"},
            {"num_experts", &num_experts, "mixture of experts"},
            {"num_local_experts", &num_local_experts, "mixture of experts"},
            {"d_intermediate", &d_intermediate, "MLP blocks"},
            {"quantization_config", Field::Nested(quantization), "quantised weights"}};
  }
};

Fields kind_fields(Published& published) {
  return {{"model_type", &published.model_type, ""}, {"architectures", &published.architectures, ""}};
}

// model_type, or what the name of the class says in a file without one.
const Architecture& architecture_of(const Published& published, std::string_view where) {
  std::string known;
  for (const Architecture& one : kArchitectures) {
    known += (known.empty() ? "" : ", ") + std::string(one.model_type);
    if (published.model_type == one.model_type) return one;
    for (const std::string& name : published.architectures)
      if (published.model_type.empty() &&
          (name == std::string(one.name) + std::string(kHead) || name == std::string(one.name) + std::string(kBare)))
        return one;
  }
  const bool typed = !published.model_type.empty();
  throw Error(where, ": ", typed ? "model_type" : "architectures", " is \"",
              typed ? published.model_type : published.architectures[0],
              "\", a model that this version does not have (known: ", known, ")");
}

const Architecture& architecture_of(const ModelConfig& config) {
  const auto refuse = [](bool asked, const auto&... what) {
    require(!asked, "transformers has no word for ", what..., "; write the state-spaces naming instead");
  };
  refuse(!config.attn_layer_idx.empty(), "attention in a Mamba");
  refuse(config.d_intermediate > 0, "MLPs in a Mamba (d_intermediate ", config.d_intermediate, ")");
  refuse(config.learned_positions > 0, "learned positions in a Mamba");
  Kind kind = Kind::mamba2;
  if (const auto* const mamba = dynamic_cast<const MambaConfig*>(config.mixer.get())) {
    refuse(mamba->inner.inner != "S6", "ssm_cfg.inner = ", mamba->inner.inner);
    kind = mamba->inner.s6.b_c_dt_rms_eps > 0 ? Kind::falcon_mamba : Kind::mamba;
  } else {
    require(dynamic_cast<const Mamba2Config*>(config.mixer.get()), "transformers has no word for the mixer ",
            config.layer);
  }
  return kArchitectures[static_cast<size_t>(kind)];
}

void check_sizes(const Published& published, std::string_view where) {
  const auto within = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, where, ": ", name, " is ", value, ", expected ", low, " to ", high);
  };
  within("vocab_size", published.vocab_size, 1, 1 << 28);
  within("hidden_size", published.hidden_size, 1, 1 << 20);
  within("num_hidden_layers", published.num_hidden_layers, 1, 1 << 16);
  within("state_size", published.state_size, 1, 1 << 16);
  within("conv_kernel", published.conv_kernel, 1, 1 << 16);
  within("expand", published.expand, 1, 1 << 10);
  within("intermediate_size", published.intermediate_size, 0, 1 << 24);
  within("time_step_rank", published.time_step_rank, 0, 1 << 20);
  const auto small = [&](const char* name, double value) {
    require(value > 0 && value < 1, where, ": ", name, " is ", value, ", expected a small positive number");
  };
  small("layer_norm_epsilon", published.layer_norm_epsilon);
  small("mixer_rms_eps", published.mixer_rms_eps);
}

void check_heads(const Published& published, std::string_view where) {
  const int64_t inner = published.expand * published.hidden_size, heads = published.num_heads;
  const auto positive = [&](const char* name, int64_t value) {
    require(0 < value && value <= inner, where, ": ", name, " is ", value, ", expected 1 to ", inner);
  };
  positive("num_heads", heads);
  positive("head_dim", published.head_dim);
  positive("n_groups", published.n_groups);
  positive("chunk_size", std::min(published.chunk_size, inner));
  require(heads * published.head_dim == inner, where, ": num_heads is ", heads, " and head_dim ", published.head_dim,
          ", expected a product of ", inner, ", expand times hidden_size");
  require(heads % published.n_groups == 0, where, ": n_groups is ", published.n_groups, ", expected a divisor of the ",
          heads, " heads");
  const std::vector<double>& limit = published.time_step_limit;
  require(limit.size() == 2 && limit[0] <= limit[1] && limit[1] >= 0, where,
          ": time_step_limit is not two numbers with first <= second and second >= 0");
}

// What the config asks for and this program would not compute.
void check_abilities(const Published& published, std::string_view where) {
  const auto refuse = [&](bool asked, const auto&... what) { require(!asked, where, ": ", what...); };
  refuse(published.hidden_act != "silu" && published.hidden_act != "swish", "hidden_act is \"", published.hidden_act,
         "\"; this version has silu only");
  refuse(published.quantized, "quantization_config: quantised weights cannot be read; expected f32, bf16 or f16");
  refuse(published.num_experts > 1 || published.num_local_experts > 1, "num_experts is ",
         std::max(published.num_experts, published.num_local_experts), "; this version has no mixture of experts");
  // Leftovers of a state-spaces config: what transformers builds from this file has neither.
  refuse(published.d_intermediate > 0, "d_intermediate is ", published.d_intermediate, ", but a model of type ",
         published.model_type, " has no MLPs, in layer 0 and all others; give the config.json of state-spaces");
  if (!published.attn_layer_idx.empty())
    refuse(true, "attn_layer_idx asks for attention in layer ", published.attn_layer_idx[0], ", but a model of type ",
           published.model_type, " has none; give the config.json of state-spaces");
  for (size_t i = 0; i < published.layer_types.size(); ++i) {
    const std::string& type = published.layer_types[i];
    refuse(type != "linear_attention" && type != "mamba", "layer_types asks for \"", type, "\" in layer ", i,
           ", but a model of type ", published.model_type, " has none");
  }
}

void check_no_limit(const Published& published, std::string_view where) {
  const std::vector<double>& limit = published.time_step_limit;
  const bool open = limit.empty() || (limit.size() == 2 && limit[0] <= 0 && limit[1] >= 1e30);
  require(open, where, ": time_step_limit bounds dt, which a model of type ", published.model_type,
          " does not do; expected none, or [0.0, Infinity]");
}

std::shared_ptr<MixerConfig> mamba_of(const Published& published, bool falcon) {
  auto mixer = std::make_shared<MambaConfig>();
  mixer->inner.s6.d_state = published.state_size;
  mixer->d_conv = published.conv_kernel;
  mixer->expand = published.expand;
  // transformers takes intermediate_size from the file where there is one; d_inner and dt_rank beside it, left over
  // from the state-spaces config and wrong in some published files, it does not read.
  if (published.intermediate_size != published.expand * published.hidden_size)
    mixer->d_inner = published.intermediate_size;
  mixer->inner.s6.dt_rank = published.time_step_rank;
  mixer->inner.s6.dt_min = published.time_step_min;
  mixer->inner.s6.dt_max = published.time_step_max;
  mixer->inner.s6.dt_init = published.time_step_init_scheme;
  mixer->inner.s6.dt_scale = published.time_step_scale;
  mixer->inner.s6.dt_init_floor = published.time_step_floor;
  mixer->bias = published.use_bias;
  mixer->conv_bias = published.use_conv_bias;
  mixer->inner.s6.b_c_dt_rms_eps = falcon ? published.mixer_rms_eps : 0;
  return mixer;
}

std::shared_ptr<MixerConfig> mamba2_of(const Published& published) {
  auto mixer = std::make_shared<Mamba2Config>();
  mixer->d_state = published.state_size;
  mixer->d_conv = published.conv_kernel;
  mixer->expand = published.expand;
  mixer->headdim = published.head_dim;
  mixer->ngroups = published.n_groups;
  mixer->norm_epsilon = published.layer_norm_epsilon;  // one key for the norms of blocks and mixers
  mixer->dt_min = published.time_step_min;
  mixer->dt_max = published.time_step_max;
  mixer->dt_init_floor = published.time_step_floor;
  mixer->dt_limit = published.time_step_limit;
  mixer->bias = published.use_bias;
  mixer->conv_bias = published.use_conv_bias;
  mixer->chunk_size = published.chunk_size;
  return mixer;
}

using Json = nlohmann::ordered_json;

void put_mamba(Json& json, const MambaConfig& mixer, const ModelConfig& config) {
  json["state_size"] = mixer.inner.s6.d_state;
  json["conv_kernel"] = mixer.d_conv;
  json["expand"] = mixer.expand;
  json["intermediate_size"] = mixer.d_inner > 0 ? mixer.d_inner : mixer.expand * config.d_model;
  json["time_step_rank"] = mixer.inner.s6.dt_rank > 0 ? Json(mixer.inner.s6.dt_rank) : Json("auto");
  json["time_step_scale"] = mixer.inner.s6.dt_scale;
  json["time_step_min"] = mixer.inner.s6.dt_min;
  json["time_step_max"] = mixer.inner.s6.dt_max;
  json["time_step_floor"] = mixer.inner.s6.dt_init_floor;
  json["time_step_init_scheme"] = mixer.inner.s6.dt_init;
  json["use_bias"] = mixer.bias;
  json["use_conv_bias"] = mixer.conv_bias;
  if (mixer.inner.s6.b_c_dt_rms_eps > 0) json["mixer_rms_eps"] = mixer.inner.s6.b_c_dt_rms_eps;
}

void put_mamba2(Json& json, const Mamba2Config& mixer, const ModelConfig& config) {
  const auto refuse = [](bool asked, const char* key, const auto& value) {
    require(!asked, "transformers has no word for ssm_cfg.", key, " = ", value,
            "; write the state-spaces naming instead");
  };
  const int64_t inner = mixer.expand * config.d_model;
  refuse(mixer.d_ssm > 0 && mixer.d_ssm != inner, "d_ssm", mixer.d_ssm);
  refuse(mixer.D_has_hdim, "D_has_hdim", "true");
  refuse(!mixer.rmsnorm, "rmsnorm", "false");
  refuse(mixer.norm_before_gate, "norm_before_gate", "true");
  refuse(mixer.norm_epsilon != config.norm_epsilon, "norm_epsilon", mixer.norm_epsilon);
  json["state_size"] = mixer.d_state;
  json["conv_kernel"] = mixer.d_conv;
  json["expand"] = mixer.expand;
  json["num_heads"] = inner / mixer.headdim;
  json["head_dim"] = mixer.headdim;
  json["n_groups"] = mixer.ngroups;
  json["chunk_size"] = mixer.chunk_size;
  json["time_step_min"] = mixer.dt_min;
  json["time_step_max"] = mixer.dt_max;
  json["time_step_floor"] = mixer.dt_init_floor;
  // JSON has no infinity, and what versions of transformers write instead differs; the largest float bounds as little.
  constexpr double kLargest = std::numeric_limits<float>::max();
  json["time_step_limit"] = {std::max(mixer.dt_limit[0], -kLargest), std::min(mixer.dt_limit[1], kLargest)};
  json["use_bias"] = mixer.bias;
  json["use_conv_bias"] = mixer.conv_bias;
  json["rms_norm"] = true;
}

// null, one token, or several.
Json token(const std::vector<int64_t>& ids) {
  if (ids.size() == 1) return ids[0];
  return ids.empty() ? Json(nullptr) : Json(ids);
}

std::string_view torch_name_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return "float64";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
    default: return "float32";
  }
}

}  // namespace

bool is_huggingface(std::string_view json, std::string_view where) {
  Published published;
  read_json(kind_fields(published), json, where, UnknownKeys::are_skipped);
  return !published.model_type.empty() || !published.architectures.empty();
}

ModelConfig from_huggingface(std::string_view json, std::string_view where) {
  Published published;
  read_json(kind_fields(published), json, where, UnknownKeys::are_skipped);
  const Architecture& architecture = architecture_of(published, where);
  published.model_type = architecture.model_type;
  if (architecture.kind == Kind::mamba2) published.take_defaults_of_mamba2();
  read_json(published.fields(), json, where, UnknownKeys::are_skipped);
  check_sizes(published, where);
  check_abilities(published, where);
  const bool second = architecture.kind == Kind::mamba2;
  second ? check_heads(published, where) : check_no_limit(published, where);

  ModelConfig config;
  config.d_model = published.hidden_size;
  config.n_layer = published.num_hidden_layers;
  config.vocab_size = published.vocab_size;
  config.pad_vocab_size_multiple = 1;  // the rows are counted with their padding
  config.tie_embeddings = published.tie_word_embeddings;
  config.residual_in_fp32 = published.residual_in_fp32;
  config.norm_epsilon = published.layer_norm_epsilon;
  config.eos_token_id = published.eos_token_id;
  config.layer = second ? "Mamba2" : "Mamba1";
  config.mixer = second ? mamba2_of(published) : mamba_of(published, architecture.kind == Kind::falcon_mamba);
  return config;
}

std::string model_type_of(const ModelConfig& config) { return std::string(architecture_of(config).model_type); }

std::string to_huggingface(const ModelConfig& config, DType dtype, std::string_view original) {
  const Architecture& architecture = architecture_of(config);
  Json json;
  json["architectures"] = {std::string(architecture.name) + std::string(kHead)};
  json["model_type"] = architecture.model_type;
  json["torch_dtype"] = torch_name_of(dtype);
  json["vocab_size"] = config.padded_vocab();
  json["hidden_size"] = config.d_model;
  json["num_hidden_layers"] = config.n_layer;
  json["layer_norm_epsilon"] = config.norm_epsilon;
  json["hidden_act"] = "silu";
  json["residual_in_fp32"] = config.residual_in_fp32;
  json["tie_word_embeddings"] = config.tie_embeddings;
  std::vector<int64_t> begin, pad;
  if (!original.empty())
    read_json({{"bos_token_id", &begin, ""}, {"pad_token_id", &pad, ""}}, original, "config.json",
              UnknownKeys::are_skipped);
  json["bos_token_id"] = token(begin);
  json["pad_token_id"] = token(pad);
  json["eos_token_id"] = token(config.eos_token_id);
  if (architecture.kind == Kind::mamba2)
    put_mamba2(json, dynamic_cast<const Mamba2Config&>(*config.mixer), config);
  else
    put_mamba(json, dynamic_cast<const MambaConfig&>(*config.mixer), config);
  return json.dump(2) + "\n";
}

std::vector<int64_t> end_of_text_in(std::string_view generation_config, std::string_view where) {
  std::vector<int64_t> ids;
  read_json({{"eos_token_id", &ids, "ends a text"}}, generation_config, where, UnknownKeys::are_skipped);
  return ids;
}

}  // namespace ssm
