// Configs of transformers: what each key becomes, whose defaults hold, what is refused and how, and that damage is an
// Error and no more.
#include "models/huggingface.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "formats/test_files.h"
#include "formats/test_mutator.h"
#include "mixers/mamba/mamba.h"
#include "mixers/mamba2/mamba2.h"
#include "models/model.h"

namespace ssm {
namespace {

using Json = nlohmann::ordered_json;

ModelConfig read(const std::string& json) { return ModelConfig::from_json(json, "config.json"); }
const MambaConfig& mamba_in(const ModelConfig& config) { return dynamic_cast<const MambaConfig&>(*config.mixer); }
const Mamba2Config& mamba2_in(const ModelConfig& config) { return dynamic_cast<const Mamba2Config&>(*config.mixer); }

testing::AssertionResult refused(const std::string& json, std::string_view part) {
  return fails_with(part, [&] { read(json); });
}

Path golden(std::string_view name) { return Path(SSM_SOURCE_ROOT) / "tests" / "golden_hf" / name; }

TEST(HuggingFaceConfig, DefaultsAreThoseOfTheModelType) {
  const ModelConfig mamba = read(R"({"model_type": "mamba"})"), mamba2 = read(R"({"model_type": "mamba2"})"),
                    falcon = read(R"({"model_type": "falcon_mamba"})");
  EXPECT_EQ(mamba.layer, "Mamba1");
  EXPECT_EQ(mamba.d_model, 768);
  EXPECT_EQ(mamba.n_layer, 32);
  EXPECT_EQ(mamba.padded_vocab(), 50280);
  EXPECT_TRUE(mamba.tie_embeddings);
  EXPECT_EQ(mamba.eos_token_id, std::vector<int64_t>{0});
  EXPECT_FALSE(mamba_in(mamba).bias);
  EXPECT_EQ(mamba_in(mamba).inner.s6.b_c_dt_rms_eps, 0);
  EXPECT_EQ(mamba_in(falcon).inner.s6.b_c_dt_rms_eps, 1e-6);
  EXPECT_TRUE(falcon.tie_embeddings);
  EXPECT_EQ(mamba2.layer, "Mamba2");
  EXPECT_EQ(mamba2.d_model, 4096);
  EXPECT_EQ(mamba2.padded_vocab(), 32768);
  EXPECT_FALSE(mamba2.tie_embeddings);
  EXPECT_EQ(mamba2.eos_token_id, std::vector<int64_t>{2});
  EXPECT_EQ(mamba2_in(mamba2).ngroups, 8);
  EXPECT_TRUE(std::isinf(mamba2_in(mamba2).dt_limit[1]));
}

// state-spaces/mamba-370m-hf and tiiuae/falcon-mamba-7b carry such keys.
TEST(HuggingFaceConfig, LeftOversAreNotRead) {
  const ModelConfig config = read(R"({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": 1024,
      "num_hidden_layers": 48, "d_model": 1, "n_layer": 2, "d_inner": 160, "dt_rank": 3, "ssm_cfg": {"layer": "x"},
      "fused_add_norm": true, "rms_norm": true, "intermediate_size": 2048, "time_step_rank": 64, "use_cache": true,
      "transformers_version": "4.39.0.dev0", "torch_dtype": "float32", "attn_layer_idx": [], "use_mambapy": true,
      "residual_in_fp32": false, "quantization_config": null, "num_experts": 1})");
  EXPECT_EQ(config.d_model, 1024);
  EXPECT_EQ(config.n_layer, 48);
  EXPECT_EQ(mamba_in(config).d_inner, 0);
  EXPECT_EQ(mamba_in(config).inner.s6.dt_rank, 64);
  const ModelConfig falcon = read(R"({"model_type": "falcon_mamba", "hidden_size": 4096, "expand": 16,
      "intermediate_size": 8192, "time_step_rank": "auto", "mixer_rms_eps": 1e-06, "eos_token_id": [11, 10]})");
  EXPECT_EQ(mamba_in(falcon).d_inner, 8192);
  EXPECT_EQ(mamba_in(falcon).inner.s6.dt_rank, 0);
  EXPECT_EQ(falcon.eos_token_id, (std::vector<int64_t>{11, 10}));
}

TEST(HuggingFaceConfig, InfinityInEitherSpelling) {
  for (const char* infinity : {"Infinity", R"({"__float__": "Infinity"})", "1e39"})
    EXPECT_GT(
        mamba2_in(read(text(R"({"model_type": "mamba2", "time_step_limit": [0.0, )", infinity, "]}"))).dt_limit[1],
        3e38);
  EXPECT_EQ(mamba2_in(read(R"({"model_type": "mamba2", "time_step_limit": [0.25, 0.5]})")).dt_limit,
            (std::vector<double>{0.25, 0.5}));
}

TEST(HuggingFaceConfig, KnownByModelTypeOrArchitectures) {
  EXPECT_EQ(read(R"({"architectures": ["Mamba2ForCausalLM"]})").layer, "Mamba2");
  EXPECT_EQ(read(R"({"architectures": ["FalconMambaModel"]})").layer, "Mamba1");
  EXPECT_FALSE(is_huggingface(R"({"d_model": 4, "n_layer": 2, "vocab_size": 8})", "config.json"));
  EXPECT_TRUE(refused(R"({"model_type": "llama"})",
                      "config.json: model_type is \"llama\", a model that this version does not have (known: mamba, "
                      "mamba2, falcon_mamba)"));
  EXPECT_TRUE(refused(R"({"architectures": ["JambaForCausalLM"]})", "architectures is \"JambaForCausalLM\""));
  EXPECT_TRUE(refused(R"({"hidden_size": 4})", "d_model is missing"));
}

TEST(HuggingFaceConfig, WhatChangesNumbersAndIsNotHereIsRefusedByName) {
  const auto with = [](const char* rest) { return text(R"({"model_type": "mamba", )", rest, "}"); };
  EXPECT_NO_THROW(read(with(R"("hidden_act": "swish")")));
  EXPECT_TRUE(refused(with(R"("hidden_act": "gelu")"), "hidden_act is \"gelu\""));
  EXPECT_TRUE(refused(with(R"("quantization_config": {"quant_method": "bitsandbytes"})"), "quantization_config"));
  EXPECT_TRUE(refused(with(R"("num_experts": 8)"), "num_experts is 8"));
  EXPECT_TRUE(refused(with(R"("num_local_experts": 16)"), "num_experts is 16"));
  EXPECT_TRUE(refused(with(R"("attn_layer_idx": [9, 18])"), "attention in layer 9"));
  EXPECT_TRUE(refused(with(R"("layer_types": ["mamba", "attention"])"), "\"attention\" in layer 1"));
  EXPECT_TRUE(refused(with(R"("d_intermediate": 64)"), "d_intermediate is 64"));
  EXPECT_TRUE(refused(with(R"("time_step_limit": [0.0, 0.5])"), "time_step_limit"));
  EXPECT_NO_THROW(read(with(R"("time_step_limit": [0.0, Infinity])")));
}

TEST(HuggingFaceConfig, SizesThatMakeNoSenseAreRefusedByTheirOwnNames) {
  for (const char* type : {"mamba", "mamba2", "falcon_mamba"})
    for (const char* key : {"hidden_size", "num_hidden_layers", "vocab_size", "state_size", "conv_kernel", "expand",
                            "intermediate_size", "num_heads", "head_dim", "n_groups"})
      for (const char* value : {"-1", "0", "1000000000000", "9223372036854775807", "18446744073709551615", "1e300",
                                "\"four\"", "[]", "{}", "true", "1.5"}) {
        const std::string json = text("{\"model_type\": \"", type, "\", \"", key, "\": ", value, "}");
        try {
          const ModelConfig config = read(json);  // of another model type's key, or intermediate_size 0
          EXPECT_LE(config.d_model, 1 << 20);
        } catch (const Error& problem) {
          EXPECT_NE(std::string_view(problem.what()).find(key), std::string_view::npos) << problem.what();
        }
      }
  EXPECT_TRUE(refused(R"({"model_type": "mamba2", "hidden_size": 32, "num_heads": 5, "head_dim": 16, "n_groups": 1})",
                      "num_heads is 5 and head_dim 16, expected a product of 64"));
  EXPECT_TRUE(refused(R"({"model_type": "mamba2", "hidden_size": 32, "num_heads": 4, "head_dim": 16, "n_groups": 3})",
                      "n_groups is 3, expected a divisor of the 4 heads"));
  EXPECT_TRUE(refused(R"({"model_type": "mamba", "layer_norm_epsilon": NaN})", "layer_norm_epsilon"));
  EXPECT_TRUE(refused("{\"model_type\": \"mamba\", \"x\": " + std::string(100000, '['), "config.json"));
}

TEST(HuggingFaceConfig, GenerationConfigDecidesWhatEndsAText) {
  EXPECT_EQ(end_of_text_in(R"({"eos_token_id": 7, "bos_token_id": 1})", "g"), std::vector<int64_t>{7});
  EXPECT_EQ(end_of_text_in(R"({"eos_token_id": [7, 8]})", "g"), (std::vector<int64_t>{7, 8}));
  EXPECT_TRUE(end_of_text_in("{}", "g").empty());
  EXPECT_TRUE(end_of_text_in(R"({"eos_token_id": null})", "g").empty());
}

TEST(HuggingFaceConfig, WrittenAndReadBack) {
  for (const char* name : {"mamba-130m", "mamba2-130m", "bytes-1m"}) {
    ModelConfig config = ModelConfig::preset(name);
    config.vocab_size = config.padded_vocab();  // transformers counts rows
    config.pad_vocab_size_multiple = 1;
    config.tie_embeddings = false;
    config.eos_token_id = {1, 2};
    EXPECT_EQ(ModelConfig::from_json(to_huggingface(config, DType::f16), name).json(), config.json());
  }
  const auto no_word = [](const char* cfg, std::string_view part) {
    const ModelConfig config = read(text(
        R"({"d_model": 64, "n_layer": 1, "vocab_size": 8, "ssm_cfg": {"layer": "Mamba2", "headdim": 16, )", cfg, "}}"));
    EXPECT_TRUE(fails_with(part, [&] { to_huggingface(config, DType::f32); }));
  };
  no_word(R"("d_ssm": 64)", "d_ssm = 64");
  no_word(R"("D_has_hdim": true)", "D_has_hdim");
  no_word(R"("rmsnorm": false)", "rmsnorm");
  no_word(R"("norm_before_gate": true)", "norm_before_gate");
}

// Damaged configs
// ------------------------------------------------------------------------------------------------------

constexpr int kMutations = 1000;
constexpr uint64_t kSeed = 20240601;

// Opens the golden checkpoint with each of the configs; a model or an Error of one line.
void survive(std::string_view name, const std::function<std::string(std::mt19937_64&, const std::string&)>& damage) {
  const ScratchDirectory scratch;
  const std::string original = read_text(golden(name) / "config.json");
  std::filesystem::create_symlink(golden(name) / "model.safetensors", scratch.path() / "model.safetensors");
  std::mt19937_64 random(kSeed);
  int accepted = 0, refused = 0;
  for (int i = 0; i < kMutations; ++i) {
    SCOPED_TRACE(text(name, ", mutation ", i, " of seed ", kSeed));
    scratch.file("config.json", damage(random, original));
    try {
      const auto model = Model::open(scratch.path(), {.as_stored = true});
      EXPECT_GT(model->params().count(), 0);
      ++accepted;
    } catch (const Error& error) {
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(refused, kMutations / 10);
}

TEST(HuggingFaceConfig, SurvivesDamagedBytes) {
  for (const char* name : {"mamba", "mamba2"}) {
    Mutator mutator(kSeed);
    survive(name, [&](std::mt19937_64&, const std::string& json) { return mutator.mutate(json); });
  }
}

TEST(HuggingFaceConfig, SurvivesStrangeValues) {
  const std::vector<std::string> values = {"null",     "true",       "-1",           "0",
                                           "1",        "2",          "1e9",          "1e12",
                                           "1e308",    "1000000000", "1.5",          "\"x\"",
                                           "[]",       "{}",         "[0.0, 1e400]", "-1e-9",
                                           "\"auto\"", "\"mamba2\"", "\"mamba\"",    "9223372036854775807",
                                           "[[1]]",    "Infinity",   "NaN",          "{\"__float__\": \"NaN\"}"};
  for (const char* name : {"mamba", "mamba2", "mamba2_groups"})
    survive(name, [&](std::mt19937_64& random, const std::string& original) {
      const Json json = Json::parse(original);
      const size_t which = random() % json.size();
      std::string result = "{", separator;
      size_t i = 0;
      for (const auto& [key, value] : json.items()) {
        result +=
            separator + Json(key).dump() + ": " + (i++ == which ? values[random() % values.size()] : value.dump());
        separator = ", ";
      }
      return result + "}";
    });
}

}  // namespace
}  // namespace ssm
