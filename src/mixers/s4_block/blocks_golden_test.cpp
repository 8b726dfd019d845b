// Blocks against their published definitions in PyTorch: testdata/blocks.safetensors, which tools/make_block_golden.py
// made. Without a state, over its 129 tokens, S4 and S4D convolve; with one they step.
#include <gtest/gtest.h>

#include "formats/safetensors.h"
#include "formats/test_files.h"
#include "mixers/inner/lti.h"
#include "mixers/mixer.h"
#include "ops/ssm_kernel/ssm_kernel.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

struct Golden {
  std::string name, mixer, settings;
};

const std::vector<Golden> kGoldens = {
    {"s4", "s4", R"({"d_state": 8})"},
    {"s4d", "s4d", R"({"d_state": 8})"},
    {"s4d-bilinear", "s4d", R"({"d_state": 8, "disc": "bilinear"})"},
    {"s4d-real", "s4d", R"({"d_state": 7, "is_real": true})"},
    {"s6", "s6", R"({"d_state": 5, "dt_rank": 3})"},
    {"h3-s4", "h3-s4", R"({"d_state": 8, "d_conv": 6})"},
    {"h3-s4d", "h3-s4d", R"({"d_state": 8, "d_conv": 6})"},
    {"h3-s6", "h3-s6", R"({"d_state": 5, "dt_rank": 3, "d_conv": 6})"},
    {"mamba-s4", "mamba-s4", R"({"d_state": 8})"},
    {"mamba-s4d", "mamba-s4d", R"({"d_state": 8})"},
};

TensorMap golden(const std::string& name) {
  TensorMap own;
  for (const auto& [key, value] :
       read_safetensors(Path(SSM_SOURCE_ROOT) / "src/mixers/s4_block/testdata/blocks.safetensors"))
    if (key.starts_with(name + ".")) own[key.substr(name.size() + 1)] = value.clone();
  return own;
}

// The largest difference over the largest value.
double distance(const Tensor& found, const Tensor& expected) {
  EXPECT_EQ(found.shape(), expected.shape());
  const Tensor a = found.to(DType::f64), b = expected.to(DType::f64);
  double worst = 0, largest = 0;
  for (int64_t i = 0; i < b.count(); ++i) {
    worst = std::max(worst, std::abs(a.data<double>()[i] - b.data<double>()[i]));
    largest = std::max(largest, std::abs(b.data<double>()[i]));
  }
  return worst / largest;
}

TEST(BlocksGolden, OutputsConvolvedAndStepped) {
  for (const Golden& one : kGoldens)
    for (const auto& [device, dtype, limit] :
         {std::tuple{Device::ref(), DType::f64, 1e-10}, std::tuple{Device::cpu(), DType::f32, 1e-5}}) {
      SCOPED_TRACE(text(one.name, " ", name_of(device)));
      TensorMap tensors = golden(one.name);
      const Tensor u = tensors.at("u").to(dtype), y = tensors.at("y");
      for (const char* const key : {"u", "y", "K"}) tensors.erase(key);
      ParamStore store({.dtype = dtype, .source = &tensors, .device = device});
      const auto config = mixer_named(one.mixer).config();
      read_settings(*config, one.settings, one.name);
      const auto mixer = config->build(Params(store), u.size(1), 1);
      store.expect_all_used(one.name);
      const Ctx ctx{device, &test_threads()};
      const Seqs seqs = Seqs::dense(1, u.size(0));
      ASSERT_GE(seqs.longest, kConvolveFrom);
      StatePool pool(mixer->state(), 1, device);
      EXPECT_LE(distance(mixer->forward(ctx, {u, {}}, seqs, {}).value, y), limit) << "without a state";
      EXPECT_LE(distance(mixer->forward(ctx, {u, {}}, seqs, pool.state()).value, y), limit) << "with a state";
    }
}

TEST(BlocksGolden, Kernels) {
  int kernels = 0;
  for (const Golden& one : kGoldens)
    for (const auto& [device, dtype, limit] :
         {std::tuple{Device::ref(), DType::f64, 1e-10}, std::tuple{Device::cpu(), DType::f32, 1e-5}}) {
      const TensorMap tensors = golden(one.name);
      if (!tensors.contains("K")) continue;
      SCOPED_TRACE(text(one.name, " ", name_of(device)));
      ++kernels;
      const auto parameter = [&](const std::string& name) {
        const auto found = tensors.find("layer.kernel." + name);
        return found == tensors.end() ? Var{} : Var{found->second.to(dtype), {}};
      };
      const bool bilinear = one.name == "s4" || one.name == "s4d-bilinear";
      const Ctx ctx{device, &test_threads()};
      const StateSpace system = discretize(ctx, {.inv_dt = parameter("inv_dt"),
                                                 .A_real = parameter("A_real"),
                                                 .A_imag = parameter("A_imag"),
                                                 .B = parameter("B"),
                                                 .C = parameter("C"),
                                                 .P = parameter("P"),
                                                 .method = bilinear ? Discretization::bilinear : Discretization::zoh});
      const Tensor& K = tensors.at("K");
      EXPECT_LE(distance(ssm_kernel(ctx, system, K.size(0)).value, K), limit);
    }
  EXPECT_EQ(kernels, 8);
}

}  // namespace
}  // namespace ssm::test
