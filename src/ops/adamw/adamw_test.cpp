#include "ops/adamw/adamw.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

const AdamWStep kStep = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .step = 1};

struct Moving {
  Tensor value, m, v;
};

// Five steps on w_i = (i - 3) / 2, i < 7, with the gradient (i - 3) / 4 + (t i mod 5) / 8 at step t from 0.
Moving five_steps(const Ctx& ctx, DType dtype) {
  std::vector<double> start, zero(7, 0.0);
  for (int i = 0; i < 7; ++i) start.push_back((i - 3) * 0.5);
  const Moving all{Tensor::of(start).to(dtype), Tensor::of(zero).to(dtype), Tensor::of(zero).to(dtype)};
  for (int t = 0; t < 5; ++t) {
    std::vector<double> gradient;
    for (int i = 0; i < 7; ++i) gradient.push_back((i - 3) * 0.25 + t * i % 5 * 0.125);
    AdamWStep step = kStep;
    step.step = t + 1;
    adamw(ctx, all.value, Tensor::of(gradient).to(dtype), all.m, all.v, step);
  }
  return all;
}

// torch 2.15, torch.optim.AdamW(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False) in float64 on
// the problem of five_steps: the weight, exp_avg and exp_avg_sq.
const std::vector<double> kTorchValue = {-1.4426148857228231,   -0.94931300331976842, -0.48106550700362538,
                                         -0.031431372789501394, 0.45008612007734489,  0.94510989105299104,
                                         1.4426767032004999};
const std::vector<double> kTorchM = {-0.30713249999999997, -0.091642499999999988, 0.0050975000000000005,
                                     0.10746249999999999,  0.20420249999999998,   0.20475499999999996,
                                     0.42024499999999992};
const std::vector<double> kTorchV = {0.1272482226562501,  0.019772246093750015, 0.0068890820312500056,
                                     0.02173349609375002, 0.063192207031250058, 0.056554765625000045,
                                     0.23909656250000022};

TEST(AdamW, FiveStepsAsTorchMakesThem) {
  const auto compare = [](const Moving& found, double limit, const std::string& what) {
    expect_near(found.value, Tensor::of(kTorchValue), limit, what + " value");
    expect_near(found.m, Tensor::of(kTorchM), limit, what + " m");
    expect_near(found.v, Tensor::of(kTorchV), limit, what + " v");
  };
  compare(five_steps({Device::ref(), &test_threads()}, DType::f64), 1e-14, "ref");
  for_each_simd_target([&](const std::string& target) {
    compare(five_steps({Device::cpu(), &test_threads()}, DType::f32), tolerance(DType::f32, 5), target);
  });
}

TEST(AdamW, CpuAgreesWithRefOnUglySizes) {
  AdamWStep step = kStep;
  step.step = 3;
  step.gradient_scale = 0.37;
  for (const int64_t count : {1, 2, 7, 16, 31, 16383, 16384, 16385, 40009}) {
    for (const int64_t offset : {0, 1}) {  // misaligned views
      const auto make = [&](const char* name, DType dtype, double low, double high) {
        return random_tensor(name, {count + offset}, DType::f32, low, high)
            .to(dtype)
            .clone()
            .rows(offset, count + offset);
      };
      const auto moved = [&](const Ctx& ctx, DType dtype) {
        const Moving all{make("w", dtype, -1, 1), make("m", dtype, -1, 1), make("v", dtype, 0, 1)};
        adamw(ctx, all.value, make("g", dtype, -1, 1), all.m, all.v, step);
        return all;
      };
      const Moving expected = moved({Device::ref(), &test_threads()}, DType::f64);
      for_each_simd_target([&](const std::string& target) {
        const Moving found = moved({Device::cpu(), &test_threads()}, DType::f32);
        const std::string what = text(count, " elements from ", offset, " on ", target);
        expect_near(found.value, expected.value, tolerance(DType::f32, 1), what + " value");
        expect_near(found.m, expected.m, tolerance(DType::f32, 1), what + " m");
        expect_near(found.v, expected.v, tolerance(DType::f32, 1), what + " v");
      });
    }
  }
}

TEST(AdamW, AViewIsChangedAndNothingBesideIt) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Tensor whole = random_tensor("whole", {20}, DType::f32), before = whole.clone();
    const Tensor one = random_tensor("g", {11}, DType::f32);
    adamw({device, &test_threads()}, whole.rows(3, 14), one, Tensor::zeros({11}, DType::f32),
          Tensor::zeros({11}, DType::f32), kStep);
    expect_near(whole.rows(0, 3), before.rows(0, 3), 0, "before the view");
    expect_near(whole.rows(14, 20), before.rows(14, 20), 0, "after the view");
    for (int64_t i = 3; i < 14; ++i) EXPECT_NE(whole.data<float>()[i], before.data<float>()[i]) << i;
  }
}

TEST(AdamW, TheGradientIsScaledAsItIsRead) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const auto moved = [&](double factor, double scale) {
      const Tensor w = random_tensor("w", {37}, DType::f32), g = random_tensor("g", {37}, DType::f32);
      for (float& value : g.span<float>()) value *= static_cast<float>(factor);
      const Tensor m = Tensor::zeros({37}, DType::f32), v = Tensor::zeros({37}, DType::f32);
      AdamWStep step = kStep;
      step.gradient_scale = scale;
      adamw({device, &test_threads()}, w, g, m, v, step);
      return Moving{w, m, v};
    };
    const Moving scaled = moved(1, 0.25), premultiplied = moved(0.25, 1);
    expect_near(scaled.value, premultiplied.value, 0, "value");
    expect_near(scaled.m, premultiplied.m, 0, "m");
    expect_near(scaled.v, premultiplied.v, 0, "v");
  }
}

TEST(AdamW, SquaredNormOnUglySizes) {
  for (const int64_t count : {0, 1, 3, 17, 4095, 4096, 4097, 65536, 70001}) {
    const Tensor values = random_tensor("values", {count}, DType::f32);
    double expected = 0;
    for (const float value : values.span<float>()) expected += static_cast<double>(value) * value;
    EXPECT_EQ(squared_norm({Device::ref(), &test_threads()}, values), expected);
    for_each_simd_target([&](const std::string& target) {
      EXPECT_NEAR(squared_norm({Device::cpu(), &test_threads()}, values), expected,
                  tolerance(DType::f64, count) * expected)
          << count << " on " << target;
    });
    const double two = squared_norm({Device::cpu(), &test_threads()}, values);
    Threads one(1), five(5);
    EXPECT_EQ(squared_norm({Device::cpu(), &one}, values), two);
    EXPECT_EQ(squared_norm({Device::cpu(), &five}, values), two);
  }
}

TEST(AdamW, NotFiniteIsFoundWhereItIs) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor values = Tensor::of(std::vector<float>(5000, 3e38f));  // squares beyond f32 are no infinity
  const Ctx ctx{Device::cpu(), &test_threads()};
  EXPECT_EQ(first_not_finite(values), std::nullopt);
  EXPECT_TRUE(std::isfinite(squared_norm(ctx, values)));
  for (const float bad : {infinity, -infinity, nan}) {
    for (const int64_t place : {4999, 4096, 17, 0}) {
      values.data<float>()[place] = bad;
      EXPECT_EQ(first_not_finite(values), place);
      EXPECT_FALSE(std::isfinite(squared_norm(ctx, values))) << bad << " at " << place;
    }
    std::fill_n(values.data<float>(), 5000, 1.0f);
  }
  EXPECT_EQ(first_not_finite(Tensor::of(std::vector<double>{0, 1e308, std::numeric_limits<double>::infinity()})), 2);
}

TEST(AdamW, WrongInputsAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Tensor w = Tensor::zeros({4}, DType::f32), other = Tensor::zeros({5}, DType::f32);
  EXPECT_NO_THROW(adamw(ctx, w, w.clone(), w.clone(), w.clone(), kStep));
  EXPECT_THROW(adamw(ctx, w, other, w.clone(), w.clone(), kStep), Error);
  EXPECT_THROW(adamw(ctx, w, w.to(DType::f64), w.clone(), w.clone(), kStep), Error);
  AdamWStep zeroth = kStep;
  zeroth.step = 0;
  EXPECT_THROW(adamw(ctx, w, w.clone(), w.clone(), w.clone(), zeroth), Error);
  const Tensor columns = Tensor::zeros({2, 4}, DType::f32).columns(0, 2);
  EXPECT_THROW(squared_norm(ctx, columns), Error);
}

}  // namespace
}  // namespace ssm::test
