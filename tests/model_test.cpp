// Whole models: gradients of a two-layer model in f64 against finite differences, published parameter counts, names,
// and that nothing of the size tokens x vocabulary is stored in training.
#include <gtest/gtest.h>

#include <cmath>

#include "core/memory.h"
#include "models/model.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

ModelConfig tiny_config(bool tied) {
  ModelConfig config = ModelConfig::from_json(
      R"({"d_model": 10, "n_layer": 2, "vocab_size": 11, "pad_vocab_size_multiple": 4,
          "ssm_cfg": {"d_state": 3, "d_conv": 3, "expand": 3, "bias": true}})",
      "tiny");
  config.tie_embeddings = tied;
  return config;
}

Tensor some_ids(int64_t t, int64_t vocab) {
  const Tensor ids = Tensor::empty({t}, DType::i64);
  const Rng rng(5, "ids");
  for (int64_t i = 0; i < t; ++i)
    ids.data<int64_t>()[i] = static_cast<int64_t>(rng.below(static_cast<uint64_t>(i), static_cast<uint64_t>(vocab)));
  return ids;
}

void check_gradients(const ModelConfig& config) {
  const auto model = Model::create(config, 3, {.device = Device::ref(), .dtype = DType::f64, .trainable = true});
  const Seqs seqs = Seqs::ragged(std::vector<int64_t>{5, 3});
  const Tensor ids = some_ids(8, 11), targets = some_ids(8, 11);
  targets.data<int64_t>()[2] = -100;  // not scored
  const auto loss_of = [&](Tape* tape) {
    const Var loss = model->lm().loss({Device::ref(), &test_threads(), tape}, ids, targets, seqs);
    if (tape) tape->backward(loss);
    return loss.value.item<double>();
  };
  Tape tape;
  loss_of(&tape);
  for (const auto& param : model->params().all()) {
    ASSERT_TRUE(param->var.grad->written) << param->name;
    const Tensor value = param->var.value, gradient = param->var.grad->value;
    double largest = 0;
    for (const double g : gradient.span<double>()) largest = std::max(largest, std::abs(g));
    const int64_t checks = std::min<int64_t>(5, value.count());
    for (int64_t k = 0; k < checks; ++k) {
      const int64_t i = k * value.count() / checks;
      double* element = value.data<double>() + i;
      const double center = *element, step = 1e-4;  // small beside embeddings, 0.02
      const auto loss_at = [&](double offset) {
        *element = center + offset;
        const double loss = loss_of(nullptr);
        *element = center;
        return loss;
      };
      const double numeric =
          (8 * (loss_at(step) - loss_at(-step)) - (loss_at(2 * step) - loss_at(-2 * step))) / (12 * step);
      EXPECT_LE(std::abs(gradient.data<double>()[i] - numeric), 1e-7 * std::max(std::abs(numeric), largest) + 1e-11)
          << param->name << " at " << i << ": " << gradient.data<double>()[i] << ", differences say " << numeric;
    }
  }
}

TEST(Model, GradientsOfTwoLayersAreFiniteDifferences) {
  for (const bool tied : {true, false}) check_gradients(tiny_config(tied));
}

TEST(Model, PublishedSizesHaveThePublishedParameterCounts) {
  struct Row {
    const char* name;
    int64_t parameters, rows;  // rows: of the embedding
  };
  for (const Row& row : {Row{"mamba-130m", 129135360, 50280},
                         {"mamba-370m", 371516416, 50280},
                         {"mamba-790m", 793204224, 50280},
                         {"mamba-1.4b", 1372178432, 50280},
                         {"mamba-2.8b", 2768345600, 50280},
                         {"mamba2-130m", 128989632, 50288},
                         {"mamba2-370m", 368346624, 50288},
                         {"mamba2-780m", 780161280, 50288},
                         {"mamba2-1.3b", 1343757312, 50288},
                         {"mamba2-2.7b", 2702599680, 50288}}) {
    const ModelConfig config = ModelConfig::preset(row.name);
    ParamStore store({.shapes_only = true});
    const LanguageModel lm(store, config);
    EXPECT_EQ(store.count(), row.parameters) << row.name;
    EXPECT_EQ(config.padded_vocab(), row.rows) << row.name;
    EXPECT_EQ(ModelConfig::from_json(config.json(), row.name).json(), config.json());
  }
}

TEST(Model, NothingOfTokensTimesVocabularyIsStoredInTraining) {
  ModelConfig config = tiny_config(true);
  config.vocab_size = 30000;  // its logits would be 30000 / 10 times the activations
  const auto model = Model::create(config, 3, {.trainable = true});
  const int64_t t = 2048;
  const Tensor ids = some_ids(t, config.vocab_size);
  reset_memory_peak();
  const int64_t before = memory_stats().in_use;
  Tape tape;
  model->params().mark_on(tape);
  const Var loss = model->lm().loss({Device::cpu(), &test_threads(), &tape}, ids, ids, Seqs::dense(8, t / 8));
  tape.backward(loss);
  const int64_t peak = memory_stats().peak - before;
  EXPECT_LT(peak, t * config.vocab_size * 4 / 4) << "bytes at the peak";
  for (const SavedBytes& row : tape.report()) EXPECT_LT(row.bytes, t * 30 * 4 * 8) << row.op;  // e = 30; a few of them
}

TEST(Model, InitialValuesFollowTheReference) {
  const auto model = Model::create(ModelConfig::preset("bytes-1m"), 1, {});
  const auto stats = [&](const std::string& name) {
    const Param* param = model->params().find(name);
    EXPECT_NE(param, nullptr) << name;
    double sum = 0, squares = 0, low = 1e9, high = -1e9;
    for (const float v : param->var.value.span<float>())
      sum += v, squares += double{v} * v, low = std::min(low, double{v}), high = std::max(high, double{v});
    const auto count = static_cast<double>(param->var.value.count());
    return std::array<double, 4>{sum / count, std::sqrt(squares / count - sum / count * sum / count), low, high};
  };
  const auto uniform = [&](const std::string& name, double bound) {
    const auto [mean, deviation, low, high] = stats(name);
    EXPECT_NEAR(mean, 0, bound / 10) << name;
    EXPECT_NEAR(deviation, bound / std::sqrt(3.0), bound / 20) << name;
    EXPECT_GE(low, -bound) << name;
    EXPECT_LE(high, bound) << name;
  };
  const std::string mixer = "backbone.layers.3.mixer.";
  const auto embedding = stats("backbone.embedding.weight");
  EXPECT_NEAR(embedding[1], 0.02, 0.001);
  uniform(mixer + "in_proj.weight", 1 / std::sqrt(128.0));
  uniform(mixer + "x_proj.weight", 1 / std::sqrt(256.0));
  uniform(mixer + "conv1d.weight", 0.5);
  uniform(mixer + "conv1d.bias", 0.5);
  uniform(mixer + "dt_proj.weight", 1 / std::sqrt(8.0));
  uniform(mixer + "out_proj.weight", 1 / std::sqrt(256.0) / std::sqrt(8.0));
  const Param* bias = model->params().find(mixer + "dt_proj.bias");
  double mean_log = 0;
  for (const float v : bias->var.value.span<float>()) {
    const double dt = std::log1p(std::exp(double{v}));
    EXPECT_GE(dt, 0.001 * 0.999);
    EXPECT_LE(dt, 0.1 * 1.001);
    mean_log += std::log(dt) / static_cast<double>(bias->var.value.count());
  }
  EXPECT_NEAR(mean_log, (std::log(0.001) + std::log(0.1)) / 2, 0.25);
  const Param* A_log = model->params().find(mixer + "A_log");
  for (int64_t n = 0; n < 16; ++n)
    EXPECT_FLOAT_EQ(A_log->var.value.matrix<float>()[5][n], std::log(static_cast<float>(n + 1)));
  EXPECT_EQ(stats(mixer + "D"), (std::array<double, 4>{1, 0, 1, 1}));
}

TEST(Model, ConfigsSayWhatIsWrong) {
  const auto message = [](const char* json) -> std::string {
    try {
      ModelConfig::from_json(json, "config.json");
    } catch (const Error& problem) {
      return problem.what();
    }
    return "no error";
  };
  const std::string rest = R"("n_layer": 2, "vocab_size": 8)";
  EXPECT_NE(message(R"({"d_modle": 4, "d_model": 4, "n_layer": 2, "vocab_size": 8})").find("d_model"),
            std::string::npos);
  EXPECT_NE(message(R"({"n_layer": 2, "vocab_size": 8})").find("d_model is missing"), std::string::npos);
  EXPECT_NE(message(R"({"d_model": "4", "n_layer": 2, "vocab_size": 8})").find("integer"), std::string::npos);
  EXPECT_NE(message(R"({"d_model": 99999999999, "n_layer": 2, "vocab_size": 8})").find("d_model"), std::string::npos);
  EXPECT_NE(message(R"({"d_model": 4, "n_layer": 2, "vocab_size": 8, "ssm_cfg": {"layer": "Mamba9"}})").find("Mamba1"),
            std::string::npos);
  const auto attention = [&](const char* layers, const char* settings) {
    const ModelConfig config =
        ModelConfig::from_json(text(R"({"d_model": 12, "n_layer": 2, "vocab_size": 8, "attn_layer_idx": )", layers,
                                    R"(, "attn_cfg": )", settings, "}"),
                               "config.json");
    ParamStore store({.shapes_only = true});
    LanguageModel(store, config);
  };
  const auto refused = [&](const char* layers, const char* settings, const char* expected) {
    try {
      attention(layers, settings);
    } catch (const Error& problem) {
      EXPECT_NE(std::string(problem.what()).find(expected), std::string::npos) << problem.what();
      return;
    }
    ADD_FAILURE() << layers << settings << " was not refused";
  };
  EXPECT_NO_THROW(attention("[1]", R"({"causal": true, "num_heads": 3})"));
  EXPECT_NO_THROW(attention("[]", "{}"));
  refused("[2]", R"({"causal": true, "num_heads": 3})", "names layer 2, expected 0 to 1");
  refused("[1, 1]", R"({"causal": true, "num_heads": 3})", "layer 1 twice");
  refused("[0]", R"({"num_heads": 3})", "causal is false");  // as the reference reads it
  refused("[0]", R"({"causal": true})", "num_heads is 0");
  refused("[0]", R"({"causal": true, "num_heads": 5})", "divisor of d_model");
  refused("[0]", R"({"causal": true, "num_heads": 4, "num_heads_kv": 3})", "num_heads_kv");
  refused("[0]", R"({"causal": true, "num_heads": 3, "rotary_emb_dim": 3})", "rotary_emb_dim");
  refused("[0]", R"({"causal": true, "num_heads": 3, "rotary_emb_dim": 6})", "rotary_emb_dim");
  refused("[0]", R"({"causal": true, "num_haeds": 3})", "num_heads");
  EXPECT_NE(message(R"({"d_model": 4, "n_layer": 2, "vocab_size": 8, "ssm_cfg": {"layer": "Mamba3"}})")
                .find("ssm_cfg.layer, in layer 0 and all others: no mixer is called \"Mamba3\""),
            std::string::npos);
  EXPECT_NE(message("[1, 2").find("JSON"), std::string::npos);
  EXPECT_EQ(ModelConfig::from_json(tiny_config(false).json(), "round trip").json(), tiny_config(false).json());
}

// The reference implementation refuses keys it does not know: ours are written where they say something.
TEST(Model, HouseWordsAreWrittenOnlyWhereTheySaySomething) {
  ModelConfig config = ModelConfig::preset("mamba-130m");
  for (const char* word : {"norm_epsilon", "eos_token_id", "d_inner", "b_c_dt_rms_eps"})
    EXPECT_EQ(config.json().find(word), std::string::npos) << word;
  config.norm_epsilon = 1e-6;
  config.eos_token_id = {0};
  EXPECT_NE(config.json().find("norm_epsilon"), std::string::npos);
  EXPECT_EQ(ModelConfig::from_json(config.json(), "again").json(), config.json());
}

// FalconMamba's mixer: an inner width of its own, B, C and dt normalised.
TEST(Model, GradientsThroughTheNormsOfFalconMambaAreFiniteDifferences) {
  const ModelConfig config = ModelConfig::from_json(
      R"({"d_model": 10, "n_layer": 1, "vocab_size": 11, "pad_vocab_size_multiple": 1,
          "ssm_cfg": {"d_state": 3, "d_conv": 3, "d_inner": 14, "dt_rank": 4, "b_c_dt_rms_eps": 0.001}})",
      "falcon");
  check_gradients(config);
}

}  // namespace
}  // namespace ssm::test
