#include "mixers/mamba2/mamba2.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

std::string error_of(const std::string& settings, int64_t d_model = 64) {
  Mamba2Config config;
  ParamStore store({.shapes_only = true});
  try {
    read_json(config.fields(), settings, "ssm_cfg");
    config.build(Params(store), d_model, 2);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Mamba2, SizesThatMakeNoSenseAreErrorsThatNameTheFields) {
  EXPECT_EQ(error_of("{}"), "");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"headdim": 48})", "headdim"},
      {R"({"headdim": 0})", "headdim"},
      {R"({"headdim": 1024})", "headdim"},
      {R"({"d_ssm": 96, "headdim": 64})", "d_ssm"},
      {R"({"d_ssm": 129})", "d_ssm"},
      {R"({"d_ssm": -64})", "d_ssm"},
      {R"({"ngroups": 3})", "ngroups"},
      {R"({"ngroups": 0})", "ngroups"},
      {R"({"d_state": -1})", "d_state"},
      {R"({"d_state": 9223372036854775807})", "d_state"},
      {R"({"d_conv": 0})", "d_conv"},
      {R"({"expand": 1000000})", "expand"},
      {R"({"dt_limit": [0.1]})", "dt_limit"},
      {R"({"dt_limit": [0.2, 0.1]})", "dt_limit"},
      {R"({"dt_limit": [-2, -1]})", "dt_limit"},
      {R"({"dt_limit": [NaN, 1]})", "dt_limit"},
      {R"({"A_init_range": [0, 16]})", "A_init_range"},
      {R"({"A_init_range": [1, Infinity]})", "A_init_range"},
      {R"({"dt_min": 0.1, "dt_max": 0.01})", "dt_min"},
      {R"({"conv_init": -1})", "conv_init"},
      {R"({"norm_epsilon": -1})", "norm_epsilon"},
      {R"({"dt_rank": 4})", "dt_rank"},
  };
  for (const auto& [settings, name] : cases)
    EXPECT_NE(error_of(settings).find(name), std::string::npos) << settings << ": " << error_of(settings);
}

TEST(Mamba2, NullMeansTheDefaultAndIsWrittenBack) {
  Mamba2Config config;
  read_json(config.fields(),
            R"({"d_ssm": null, "conv_init": null, "process_group": null, "dt_limit": [0.0, Infinity],
                "chunk_size": 64, "use_mem_eff_path": false, "sequence_parallel": false})",
            "ssm_cfg");
  EXPECT_EQ(config.d_ssm, 0);
  EXPECT_TRUE(std::isnan(config.conv_init));
  EXPECT_TRUE(std::isinf(config.dt_limit[1]));
  const std::string written = write_json(config.fields(), 0);
  for (const char* part : {R"("d_ssm":null)", R"("conv_init":null)", R"("process_group":null)", R"("chunk_size":64)"})
    EXPECT_NE(written.find(part), std::string::npos) << written;
  Mamba2Config again;
  read_json(again.fields(), written, "ssm_cfg");
  EXPECT_EQ(write_json(again.fields(), 0), written);
}

TEST(Mamba2, PublishedSizesHaveThePublishedShapes) {
  ParamStore store({.shapes_only = true});
  Mamba2Config().build(Params(store), 768, 24);
  const std::vector<std::pair<std::string, Shape>> expected = {{"in_proj.weight", {3352, 768}},
                                                               {"conv1d.weight", {1792, 1, 4}},
                                                               {"conv1d.bias", {1792}},
                                                               {"dt_bias", {24}},
                                                               {"A_log", {24}},
                                                               {"D", {24}},
                                                               {"norm.weight", {1536}},
                                                               {"out_proj.weight", {768, 1536}}};
  ASSERT_EQ(store.all().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(store.all()[i]->name, expected[i].first);
    EXPECT_EQ(store.all()[i]->var.value.shape(), expected[i].second) << expected[i].first;
  }
}

TEST(Mamba2, InitialValuesAreThePublishedOnes) {
  ParamStore store({.seed = 3});
  Mamba2Config config;
  config.headdim = 1;  // many heads: something to count
  config.d_state = 4;
  config.conv_init = 0.25;
  config.bias = true;
  config.build(Params(store), 512, 16);
  const auto range_of = [&](const char* name, const auto& map) {
    double low = INFINITY, high = -INFINITY;
    for (const float value : store.find(name)->var.value.span<float>()) {
      low = std::min(low, map(static_cast<double>(value)));
      high = std::max(high, map(static_cast<double>(value)));
    }
    return std::pair{low, high};
  };
  const auto same = [](double v) { return v; };
  const auto expect_within = [](std::pair<double, double> range, double low, double high, const char* what) {
    EXPECT_GE(range.first, low * (1 - 1e-6) - 1e-12) << what;
    EXPECT_LE(range.second, high * (1 + 1e-6) + 1e-12) << what;
    EXPECT_GE(range.second - range.first, 0.9 * (high - low)) << what;
  };
  expect_within(range_of("A_log", [](double v) { return std::exp(v); }), 1, 16, "A");
  expect_within(range_of("dt_bias", [](double v) { return std::log1p(std::exp(v)); }), 0.001, 0.1, "dt");
  EXPECT_EQ(range_of("D", same), std::pair(1.0, 1.0));
  EXPECT_EQ(range_of("norm.weight", same), std::pair(1.0, 1.0));
  EXPECT_EQ(range_of("in_proj.bias", same), std::pair(0.0, 0.0));
  const auto around_zero = [&](const char* name, double bound) {
    const auto range = range_of(name, same);
    EXPECT_NEAR(range.first, -bound, 0.01 * bound) << name;
    EXPECT_NEAR(range.second, bound, 0.01 * bound) << name;
  };
  around_zero("in_proj.weight", 1 / std::sqrt(512.0));
  around_zero("out_proj.weight", 1 / std::sqrt(1024.0) / 4);  // 16 layers
  around_zero("conv1d.weight", 0.25);
  around_zero("conv1d.bias", 0.5);  // 4 taps
  for (const auto& param : store.all())
    EXPECT_EQ(param->flags.no_decay,
              param->name != "in_proj.weight" && param->name != "out_proj.weight" && param->name != "conv1d.weight")
        << param->name;
}

TEST(Mamba2, StateOfASequence) {
  ParamStore store({.shapes_only = true});
  Mamba2Config config;
  config.ngroups = 2, config.d_state = 16;
  const auto mixer = config.build(Params(store), 128, 1);
  const StateSpec spec = mixer->state();
  ASSERT_EQ(spec.size(), 2u);
  EXPECT_EQ(spec[0].shape, (Shape{3, 256 + 64}));
  EXPECT_EQ(spec[1].shape, (Shape{4, 16, 64}));
}

}  // namespace
}  // namespace ssm::test
