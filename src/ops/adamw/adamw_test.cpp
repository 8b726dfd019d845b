#include "ops/adamw/adamw.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

const AdamWStep kStep = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
constexpr double kDecay = 0.1;

// One parameter on a device, and what it became there.
struct Moving {
  Tensor value, gradient, m, v, copy;
  double weight_decay = kDecay;
  AdamWItem item() const { return {value, gradient, m, v, copy, weight_decay}; }
};

double step_one(const Ctx& ctx, const Moving& moving, const AdamWStep& step) {
  const AdamWItem item = moving.item();
  return adamw(ctx, std::span(&item, 1), step);
}

// Views that begin `offset` elements after a boundary.
Tensor shifted(const Tensor& values, int64_t offset, const Device& device) {
  const int64_t count = values.count();
  const Tensor whole = Tensor::zeros({count + offset}, values.dtype(), device.is_cuda() ? device : Device::cpu());
  const Tensor view = whole.rows(offset, count + offset);
  view.copy_from(values);
  return view;
}

Moving random_moving(int64_t count, int64_t offset, const Device& device, DType dtype) {
  const auto make = [&](const char* name, double low) {
    return shifted(random_tensor(text(name, count), {count}, DType::f32, low, 1).to(dtype), offset, device);
  };
  return {make("w", -1), make("g", -1), make("m", -1), make("v", 0)};
}

// Five steps on w_i = (i - 3) / 2, i < 7, with the gradient (i - 3) / 4 + (t i mod 5) / 8 at step t from 0.
Moving five_steps(const Ctx& ctx, DType dtype) {
  std::vector<double> start, zero(7, 0.0);
  for (int i = 0; i < 7; ++i) start.push_back((i - 3) * 0.5);
  const auto there = [&](const std::vector<double>& values) {
    return shifted(Tensor::of(values).to(dtype), 0, ctx.device);
  };
  const Moving all{there(start), there(zero), there(zero), there(zero)};
  for (int t = 0; t < 5; ++t) {
    std::vector<double> gradient;
    for (int i = 0; i < 7; ++i) gradient.push_back((i - 3) * 0.25 + t * i % 5 * 0.125);
    all.gradient.copy_from(Tensor::of(gradient).to(dtype));
    AdamWStep step = kStep;
    step.step = t + 1;
    step_one(ctx, all, step);
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

TEST(AdamW, EveryDeviceMakesFiveStepsAsTorchDoes) {
  if (skipped_for_want_of_gpu()) return;
  const auto compare = [](const Moving& found, DType dtype, const std::string& what) {
    const double limit = dtype == DType::f64 ? 1e-14 : tolerance(DType::f32, 5);
    expect_near(found.value, Tensor::of(kTorchValue), limit, what + " value");
    expect_near(found.m, Tensor::of(kTorchM), limit, what + " m");
    expect_near(found.v, Tensor::of(kTorchV), limit, what + " v");
  };
  for (const auto& [device, dtype] : test_devices())
    for_each_simd_target([&, device = device, dtype = dtype](const std::string& target) {
      compare(five_steps({device, &test_threads()}, dtype), dtype, name_of(device) + " " + target);
    });
}

// Ugly sizes in one call, aligned and not, with copies and without: more of them than one launch takes on a GPU.
TEST(AdamW, EveryDeviceAgreesWithRefOnManyParameters) {
  if (skipped_for_want_of_gpu()) return;
  AdamWStep step = kStep;
  step.step = 3;
  step.clip = 0.37;
  const auto make = [](const Device& device, DType dtype) {
    std::vector<Moving> all;
    std::vector<int64_t> counts = {1, 2, 7, 16, 31, 0, 8191, 8192, 8193, 16383, 16384, 16385, 40009};
    for (int64_t small = 0; small < 500; ++small) counts.push_back(3 + small % 5);
    for (const int64_t count : counts) {
      const int64_t offset = static_cast<int64_t>(all.size()) % 3;
      all.push_back(random_moving(count, offset, device, dtype));
      all.back().weight_decay = static_cast<double>(all.size() % 4) * 0.1;
      const DType types[] = {DType::bf16, DType::f16};
      if (all.size() % 5 < 2) all.back().copy = shifted(Tensor::zeros({count}, types[all.size() % 5]), offset, device);
    }
    return all;
  };
  const auto moved = [&](const Ctx& ctx, DType dtype) {
    const std::vector<Moving> all = make(ctx.device, dtype);
    std::vector<AdamWItem> items;
    for (const Moving& one : all) items.push_back(one.item());
    const double norm = adamw(ctx, items, step);
    return std::pair{all, norm};
  };
  const auto [expected, expected_norm] = moved({Device::ref(), &test_threads()}, DType::f64);
  for (const auto& [device, dtype] : test_devices())
    for_each_simd_target([&, device = device, dtype = dtype](const std::string& target) {
      const auto [found, norm] = moved({device, &test_threads()}, dtype);
      EXPECT_NEAR(norm, expected_norm, 1e-12 * expected_norm);
      for (size_t i = 0; i < found.size() && !testing::Test::HasFailure(); ++i) {
        if (found[i].value.count() == 0) continue;
        const std::string what = text(found[i].value.count(), " elements, number ", i, " on ", name_of(device), target);
        const double limit = tolerance(DType::f32, 1);
        expect_near(found[i].value, expected[i].value, limit, what + " value");
        expect_near(found[i].m, expected[i].m, limit, what + " m");
        expect_near(found[i].v, expected[i].v, limit, what + " v");
        if (found[i].copy) expect_near(found[i].copy, found[i].value.to(found[i].copy.dtype()), 0, what + " copy");
      }
    });
}

TEST(AdamW, EveryDeviceChangesAViewAndNothingBesideIt) {
  if (skipped_for_want_of_gpu()) return;
  for (const auto& [device, dtype] : test_devices()) {
    const Tensor whole = shifted(random_tensor("whole", {20}, dtype), 0, device), before = whole.clone();
    const auto zeros = [&, dtype = dtype] { return shifted(Tensor::zeros({11}, dtype), 0, device); };
    const Moving moving{whole.rows(3, 14), shifted(random_tensor("g", {11}, dtype), 0, device), zeros(), zeros()};
    step_one({device, &test_threads()}, moving, kStep);
    expect_near(whole.rows(0, 3), before.rows(0, 3), 0, "before the view");
    expect_near(whole.rows(14, 20), before.rows(14, 20), 0, "after the view");
    const Tensor after = whole.on(Device::cpu()).to(DType::f64), old = before.on(Device::cpu()).to(DType::f64);
    for (int64_t i = 3; i < 14; ++i) EXPECT_NE(after.data<double>()[i], old.data<double>()[i]) << i;
  }
}

TEST(AdamW, EveryDeviceClipsByTheNormOfAllGradients) {
  if (skipped_for_want_of_gpu()) return;
  for (const auto& [device, dtype] : test_devices()) {
    const Ctx ctx{device, &test_threads()};
    for (const double clip : {0.0, 1.0, 1e9}) {
      const Moving a = random_moving(37, 0, device, dtype), b = random_moving(41, 0, device, dtype);
      double squares = 0;
      for (const Moving* one : {&a, &b}) {
        const Tensor gradient = one->gradient.on(Device::cpu()).to(DType::f64);
        for (const double g : gradient.span<double>()) squares += g * g;
      }
      AdamWStep step = kStep;
      step.clip = clip;
      const std::vector<AdamWItem> both = {a.item(), b.item()};
      const double norm = adamw(ctx, both, step);
      EXPECT_NEAR(norm, std::sqrt(squares), 1e-13 * norm);
      // The same gradients, multiplied before.
      const double scale = clip == 1.0 ? clip / (norm + 1e-6) : 1.0;
      const Moving premultiplied = random_moving(41, 0, device, dtype);
      const Tensor scaled = premultiplied.gradient.on(Device::cpu()).to(DType::f64).clone();
      for (double& g : scaled.span<double>()) g *= scale;
      premultiplied.gradient.copy_from(scaled.to(dtype));
      step_one(ctx, premultiplied, kStep);
      const double limit = tolerance(DType::f32, 1);
      expect_near(b.value, premultiplied.value, limit, text("value, clip ", clip));
      expect_near(b.m, premultiplied.m, limit, text("m, clip ", clip));
      expect_near(b.v, premultiplied.v, limit, text("v, clip ", clip));
    }
  }
}

TEST(AdamW, EveryDeviceAddsUpTheNormTheSameWayEachTime) {
  if (skipped_for_want_of_gpu()) return;
  for (const auto& [device, dtype] : test_devices()) {
    for (const int64_t count : {0, 1, 3, 17, 4095, 4096, 4097, 65536, 70001}) {
      double expected = 0;
      const Tensor values = random_tensor(text("g", count), {count}, DType::f32).to(DType::f64);
      for (const double value : values.span<double>()) expected += value * value;
      const auto norm = [&, device = device, dtype = dtype](Threads& threads) {
        return step_one({device, &threads}, random_moving(count, 0, device, dtype), kStep);
      };
      const double two = norm(test_threads());
      EXPECT_NEAR(two, std::sqrt(expected), tolerance(DType::f64, count) * two) << count << " on " << name_of(device);
      Threads one(1), five(5);
      EXPECT_EQ(norm(one), two);
      EXPECT_EQ(norm(five), two);
    }
  }
}

TEST(AdamW, EveryDeviceLeavesAllAsItIsWhenAGradientIsNoNumber) {
  if (skipped_for_want_of_gpu()) return;
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const auto& [device, dtype] : test_devices()) {
    const Ctx ctx{device, &test_threads()};
    for (const float bad : {infinity, -infinity, nan}) {
      for (const int64_t place : {4999, 4096, 17, 0}) {
        const Moving good = random_moving(100, 0, device, dtype), wrong = random_moving(5000, 0, device, dtype);
        const Tensor gradient = wrong.gradient.on(Device::cpu()).to(DType::f32).clone();
        gradient.data<float>()[place] = bad;
        wrong.gradient.copy_from(gradient.to(dtype));
        const std::vector<AdamWItem> items = {good.item(), wrong.item()};
        EXPECT_FALSE(std::isfinite(adamw(ctx, items, kStep))) << bad << " at " << place;
        for (const Moving* one : {&good, &wrong}) {
          const Moving before = random_moving(one->value.count(), 0, device, dtype);
          expect_near(one->value, before.value, 0, "value");
          expect_near(one->m, before.m, 0, "m");
          expect_near(one->v, before.v, 0, "v");
        }
      }
    }
    // Squares beyond f32 are no infinity.
    const Moving large = random_moving(5000, 0, device, dtype);
    large.gradient.copy_from(Tensor::of(std::vector<float>(5000, 3e38f)).to(dtype));
    EXPECT_TRUE(std::isfinite(step_one(ctx, large, kStep)));
  }
}

TEST(AdamW, EveryDeviceThatQueuesUpdatesMakesNoneAfterOneThatFailed) {
  if (!test_devices().front().first.is_cuda() || skipped_for_want_of_gpu()) return;
  const Device gpu = test_devices().front().first;
  const Ctx ctx{gpu, &test_threads()};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto losses = [&](std::vector<float> values) { return Tensor::of(values).on(gpu); };
  const auto number = [](const Tensor& one) { return one.on(Device::cpu()).item<double>(); };
  const Moving moving = random_moving(5000, 0, gpu, DType::f32), waited = random_moving(5000, 0, gpu, DType::f32);
  const std::vector<AdamWItem> items = {moving.item()};
  const double norm = step_one(ctx, waited, kStep);
  const Tensor first = queue_adamw(ctx, items, kStep, {.losses = losses({1, 2, 3})});
  EXPECT_EQ(number(first), norm);
  expect_near(moving.value, waited.value, 0, "value");
  std::vector<float> many(3000, 1.0f);
  many[2999] = nan;
  const Tensor second = queue_adamw(ctx, items, kStep, {.losses = losses(many), .norm = first});
  const Tensor third = queue_adamw(ctx, items, kStep, {.losses = losses({1}), .norm = second});
  EXPECT_TRUE(std::isnan(number(second)));
  EXPECT_TRUE(std::isnan(number(third)));
  expect_near(moving.value, waited.value, 0, "value");
  expect_near(moving.m, waited.m, 0, "m");
  expect_near(moving.v, waited.v, 0, "v");
}

TEST(AdamW, NotFiniteIsFoundWhereItIs) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor values = Tensor::of(std::vector<float>(5000, 3e38f));
  EXPECT_EQ(first_not_finite(values), std::nullopt);
  for (const float bad : {infinity, -infinity, nan}) {
    for (const int64_t place : {4999, 4096, 17, 0}) {
      values.data<float>()[place] = bad;
      EXPECT_EQ(first_not_finite(values), place);
    }
    std::fill_n(values.data<float>(), 5000, 1.0f);
  }
  EXPECT_EQ(first_not_finite(Tensor::of(std::vector<double>{0, 1e308, std::numeric_limits<double>::infinity()})), 2);
}

TEST(AdamW, WrongInputsAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Tensor w = Tensor::zeros({4}, DType::f32), other = Tensor::zeros({5}, DType::f32);
  const Moving right{w, w.clone(), w.clone(), w.clone(), w.to(DType::bf16)};
  EXPECT_NO_THROW(step_one(ctx, right, kStep));
  Moving wrong = right;
  wrong.gradient = other;
  EXPECT_THROW(step_one(ctx, wrong, kStep), Error);
  wrong = right, wrong.gradient = w.to(DType::f64);
  EXPECT_THROW(step_one(ctx, wrong, kStep), Error);
  wrong = right, wrong.copy = other.to(DType::bf16);
  EXPECT_THROW(step_one(ctx, wrong, kStep), Error);
  wrong = right, wrong.copy = w.clone();
  EXPECT_THROW(step_one(ctx, wrong, kStep), Error);
  const Tensor columns = Tensor::zeros({2, 4}, DType::f32).columns(0, 2);
  EXPECT_THROW(step_one(ctx, {columns, columns, columns, columns}, kStep), Error);
  AdamWStep zeroth = kStep;
  zeroth.step = 0;
  EXPECT_THROW(step_one(ctx, right, zeroth), Error);
}

}  // namespace
}  // namespace ssm::test
