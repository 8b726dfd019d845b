// S4 and S4D as a convolution and as a recurrence: the laws of tests/laws_test.cpp are too short to convolve.
#include "mixers/inner/lti.h"

#include <gtest/gtest.h>

#include "mixers/inner/inner.h"
#include "mixers/mixer.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

constexpr int64_t kWidth = 8;

std::vector<std::pair<std::string, std::string>> cases() {
  std::vector<std::pair<std::string, std::string>> all = {{"S4", "{}"},
                                                          {"S4", R"({"n_ssm": 2, "dt_transform": "softplus"})"},
                                                          {"S4D", R"({"disc": "bilinear"})"},
                                                          {"S4D", R"({"init": "diag-real", "is_real": true})"}};
  for (const std::string& init : s4d_inits()) all.emplace_back("S4D", text(R"({"init": ")", init, R"("})"));
  return all;
}

struct Built {
  ParamStore store;
  std::unique_ptr<Mixer> mixer;
  Built(const std::pair<std::string, std::string>& which, Device device, DType dtype, bool trainable)
      : store({.dtype = dtype, .seed = 3, .trainable = trainable, .device = device}) {
    const auto config = mixer_kind(which.first).config();
    read_settings(*config, which.second, which.first);
    mixer = config->build(Params(store), kWidth, 1);
  }
};

double largest(const Tensor& x) {
  const Tensor numbers = x.to(DType::f64);
  double most = 0;
  for (const double value : numbers.span<double>()) most = std::max(most, std::abs(value));
  return most;
}

TEST(LtiLayer, ConvolutionIsRecurrenceOver16384TokensInF32) {
  const int64_t t = 16384;
  for (const auto& which : cases()) {
    SCOPED_TRACE(which.first + which.second);
    const Built built(which, Device::cpu(), DType::f32, false);
    const Ctx ctx{Device::cpu(), &test_threads()};
    const Tensor u = random_tensor("u", {t, kWidth}, DType::f32);
    StatePool pool(built.mixer->state(), 1);  // a call that carries a state steps through its tokens
    const Tensor convolved = built.mixer->forward(ctx, {u, {}}, Seqs::dense(1, t), {}).value;
    const Tensor stepped = built.mixer->forward(ctx, {u, {}}, Seqs::dense(1, t), pool.state()).value;
    double worst = 0;
    for (int64_t i = 0; i < stepped.count(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(convolved.data<float>()[i]) -
                                       static_cast<double>(stepped.data<float>()[i])));
    EXPECT_GT(worst, 0) << "both were the same";
    EXPECT_LE(worst, 1e-5 * largest(stepped));
  }
}

// The same loss through both: over all tokens at once, and in two pieces of which the second goes on from a state.
TEST(LtiLayer, EveryDeviceHasTheSameGradientsThroughConvolutionAndRecurrence) {
  if (skipped_for_want_of_gpu()) return;
  const int64_t t = 2 * kConvolveFrom, cut = kConvolveFrom / 2;
  for (const auto& which : cases())
    for (const auto& [device, dtype] : test_devices()) {
      if (device.is_ref() && dtype == DType::f32) continue;  // its long sums are no better than the cpu's
      const double limit = dtype == DType::f64 ? 1e-9 : 1e-3;
      SCOPED_TRACE(text(which.first, which.second, " ", name_of(device)));
      const Tensor u = random_tensor("u", {t, kWidth}, DType::f32).to(dtype).on(device);
      const Tensor weight = random_tensor("weight", {t, kWidth}, DType::f32).to(dtype).on(device);
      const Built convolved(which, device, dtype, true), recurrent(which, device, dtype, true);
      {
        Tape tape;
        const Ctx ctx{device, &test_threads(), &tape};
        tape.backward({{convolved.mixer->forward(ctx, {u, {}}, Seqs::dense(1, t), {}), weight}});
      }
      {
        Tape tape;
        const Ctx ctx{device, &test_threads(), &tape};
        std::vector<Var> state;
        for (const StateEntry& entry : recurrent.mixer->state()) {
          std::vector<int64_t> sizes = {1};
          sizes.insert(sizes.end(), entry.shape.begin(), entry.shape.end());
          state.push_back(tape.variable(Tensor::zeros(Shape(sizes), dtype, device)));
        }
        std::vector<std::pair<Var, Tensor>> seeds;
        for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, t}})
          seeds.emplace_back(
              recurrent.mixer->forward(ctx, {u.rows(begin, end), {}}, Seqs::dense(1, end - begin), state),
              weight.rows(begin, end));
        tape.backward(seeds);
      }
      for (const auto& param : convolved.store.all()) {
        const Tensor a = param->var.grad->value.on(Device::cpu()).to(DType::f64),
                     b = recurrent.store.find(param->name)->var.grad->value.on(Device::cpu()).to(DType::f64);
        double worst = 0;
        for (int64_t i = 0; i < a.count(); ++i)
          worst = std::max(worst, std::abs(a.data<double>()[i] - b.data<double>()[i]));
        EXPECT_LE(worst, limit * largest(b)) << param->name;
      }
    }
}

}  // namespace
}  // namespace ssm::test
