// AdamW over a store: which parameters decay, clipping, gradients that are no numbers, saving.
#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "formats/test_files.h"

namespace ssm {
namespace {

// Four kinds of parameters, all 1, with gradients to be set.
class OptimizerOfStore : public testing::Test {
 protected:
  OptimizerOfStore() : store_({.trainable = true}) {
    const Params root(store_);
    root.get("matrix", {2, 2}, Init::constant(1));
    root.get("conv", {2, 1, 2}, Init::constant(1));
    root.get("A_log", {2, 2}, Init::constant(1), {.no_decay = true});
    root.get("bias", {2}, Init::constant(1));
    ctx_.threads = &threads_;
  }
  void set_gradients(float value) {
    for (const auto& param : store_.all()) {
      GradOut gradient(param->var.grad);
      for (float& element : gradient.out.span<float>()) element = value;
    }
  }
  float value(const char* name) const { return store_.find(name)->var.value.data<float>()[0]; }

  Threads threads_{1};
  Ctx ctx_;
  ParamStore store_;
};

TEST_F(OptimizerOfStore, DecaysMatricesThatMayDecay) {
  Optimizer optimizer(store_);
  set_gradients(0);
  EXPECT_EQ(optimizer.update(ctx_, {.weight_decay = 0.5}, 0.1, 0.1, 1), 0);
  EXPECT_FLOAT_EQ(value("matrix"), 0.95f);
  EXPECT_FLOAT_EQ(value("conv"), 0.95f);
  EXPECT_EQ(value("A_log"), 1);
  EXPECT_EQ(value("bias"), 1);
}

TEST_F(OptimizerOfStore, ClipsByTheGlobalNorm) {
  Optimizer optimizer(store_);
  set_gradients(0.5f);  // 14 elements
  const double norm = std::sqrt(14 * 0.25);
  EXPECT_DOUBLE_EQ(optimizer.update(ctx_, {.beta1 = 0.9, .clip = 0.1}, 0.1, 0.1, 1), norm);
  // The first moment is (1 - beta1) of the clipped gradient.
  const float m = optimizer.tensors()[0].second.data<float>()[0];
  EXPECT_FLOAT_EQ(m, static_cast<float>(0.1 * 0.5 * 0.1 / (norm + 1e-6)));
}

TEST_F(OptimizerOfStore, LeavesSmallGradientsAndClipZeroAlone) {
  for (const double clip : {100.0, 0.0}) {
    Optimizer optimizer(store_);
    set_gradients(0.5f);
    optimizer.update(ctx_, {.beta1 = 0.9, .clip = clip}, 0.1, 0.1, 1);
    EXPECT_FLOAT_EQ(optimizer.tensors()[0].second.data<float>()[0], 0.05f);
    store_.forget_gradients();
  }
}

TEST_F(OptimizerOfStore, AParameterWithoutGradientStaysAsItIs) {
  Optimizer optimizer(store_);
  GradOut(store_.find("bias")->var.grad).out.fill_zero();
  optimizer.update(ctx_, {.weight_decay = 0.5}, 0.1, 0.1, 1);
  EXPECT_EQ(value("matrix"), 1);
}

TEST_F(OptimizerOfStore, RefusesGradientsThatAreNoNumbers) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Optimizer optimizer(store_);
    store_.forget_gradients();
    set_gradients(1);
    store_.find("A_log")->var.grad->value.data<float>()[3] = bad;
    EXPECT_TRUE(fails_with("step 7: the gradient of A_log (2, 2) is NaN or infinite at element 3",
                           [&] { optimizer.update(ctx_, {}, 0.1, 0.1, 7); }));
    for (const char* name : {"matrix", "conv", "A_log", "bias"}) EXPECT_EQ(value(name), 1) << name;
    for (const auto& [name, moment] : optimizer.tensors())
      for (const float element : moment.span<float>()) EXPECT_EQ(element, 0) << name;
  }
}

TEST(Optimizer, AParameterWithARateOfItsOwnFollowsTheRunsCurve) {
  ParamStore store({.trainable = true});
  const Params root(store);
  root.get("run", {1}, Init::constant(1));
  root.get("own", {1}, Init::constant(1), {.lr = 0.001});
  for (const auto& param : store.all()) GradOut(param->var.grad).out.span<float>()[0] = 1;
  Threads threads(1);
  Ctx ctx;
  ctx.threads = &threads;
  Optimizer optimizer(store);
  optimizer.update(ctx, {}, 0.05, 0.1, 1);  // half way down from a peak of 0.1; the first step of AdamW is the rate
  EXPECT_NEAR(store.find("run")->var.value.data<float>()[0], 0.95, 1e-6);
  EXPECT_NEAR(store.find("own")->var.value.data<float>()[0], 0.9995, 1e-6);
}

TEST_F(OptimizerOfStore, LoadsWhatItSaved) {
  Optimizer saved(store_), loaded(store_);
  set_gradients(0.25f);
  saved.update(ctx_, {}, 0.1, 0.1, 1);
  TensorMap tensors;
  for (const auto& [name, tensor] : saved.tensors()) tensors[name] = tensor.clone();
  EXPECT_TRUE(tensors.contains("m.conv") && tensors.contains("v.A_log"));
  loaded.load(tensors, "file");
  const NamedTensors left = saved.tensors(), right = loaded.tensors();
  for (size_t i = 0; i < left.size(); ++i) {
    ASSERT_EQ(left[i].first, right[i].first);
    for (int64_t k = 0; k < left[i].second.count(); ++k)
      EXPECT_EQ(left[i].second.data<float>()[k], right[i].second.data<float>()[k]);
  }
  tensors["m.conv"] = Tensor::zeros({2, 2}, DType::f32);
  EXPECT_TRUE(fails_with("file: m.conv is f32 (2, 2), expected f32 (2, 1, 2)", [&] { loaded.load(tensors, "file"); }));
  tensors.erase("m.conv");
  EXPECT_TRUE(fails_with("file holds 7 tensors, expected 8", [&] { loaded.load(tensors, "file"); }));
  tensors["other"] = Tensor::zeros({2}, DType::f32);
  EXPECT_TRUE(fails_with("file has no tensor m.conv", [&] { loaded.load(tensors, "file"); }));
}

}  // namespace
}  // namespace ssm
