#include "tests/op_check.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "core/rng.h"

namespace ssm::test {
namespace {

constexpr uint64_t kSeed = 20231201;

double at(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype()) {
    case DType::f64: return tensor.data<double>()[i];
    case DType::f32: return tensor.data<float>()[i];
    case DType::i64: return static_cast<double>(tensor.data<int64_t>()[i]);
    default: throw Error("tests read f64, f32 and i64, found ", name_of(tensor.dtype()));
  }
}

// Contiguous, on the host, in a dtype that at() reads.
Tensor host_copy(const Tensor& tensor) {
  const Tensor here = tensor.on(Device::cpu()).clone();
  return here.dtype() == DType::bf16 || here.dtype() == DType::f16 ? here.to(DType::f32) : here;
}

bool testing_the_gpu() {
  const char* device = std::getenv("SSM_TEST_DEVICE");
  return device && std::string_view(device) == "cuda";
}

struct Run {
  std::vector<Tensor> outputs;    // contiguous
  std::vector<Tensor> gradients;  // of each input; absent where none was asked for
  double loss = 0;                // sum of outputs times fixed random weights
};

// `stored`: what the activations and weights are kept in where the case is compared with; the numbers are such that
// they can be. Drawn in f32 whatever the dtype, so that all devices start from the same numbers.
std::vector<Tensor> draw_inputs(const OpCase& op_case, DType dtype, DType stored = DType::f32) {
  std::vector<Tensor> values;
  for (const OpInput& input : op_case.inputs) {
    if (input.shape.rank() == 0) {
      values.emplace_back();
      continue;
    }
    const Tensor drawn = random_tensor(input.name, input.shape, DType::f32, input.low, input.high);
    values.push_back(input.role == Role::exact ? drawn.to(dtype) : drawn.to(stored).to(dtype));
  }
  return values;
}

// The same on a GPU, in what it keeps them in.
std::vector<Tensor> on_gpu(const OpCase& op_case, const std::vector<Tensor>& values, DType stored) {
  std::vector<Tensor> result;
  for (size_t i = 0; i < values.size(); ++i)
    result.push_back(values[i].to(op_case.inputs[i].role == Role::exact ? DType::f32 : stored).on(Device::cuda()));
  return result;
}

Run run(const OpCase& op_case, Device device, const std::vector<Tensor>& values, bool with_tape,
        DType stored = DType::f32) {
  Tape tape;
  Ctx ctx{device, &test_threads(), with_tape ? &tape : nullptr};
  std::vector<Var> inputs;
  for (size_t i = 0; i < values.size(); ++i) {
    const bool wanted = with_tape && values[i] && op_case.inputs[i].differentiable;
    // Without a tape an op may write state in place: give it a copy.
    inputs.push_back(wanted ? tape.variable(values[i]) : Var{values[i].clone(), nullptr});
    if (wanted && op_case.inputs[i].role == Role::weight) inputs[i].grad->dtype = accumulator_of(values[i].dtype());
  }
  const std::vector<Var> outputs = op_case.call(ctx, inputs);
  Run result;
  std::vector<std::pair<Var, Tensor>> seeds;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i]) continue;
    const Tensor value = host_copy(outputs[i].value);
    const Tensor weight =
        random_tensor("weight of output " + std::to_string(i), value.shape(), DType::f32).to(stored).to(DType::f32);
    for (int64_t j = 0; j < value.count(); ++j) result.loss += at(value, j) * at(weight, j);
    result.outputs.push_back(value);
    if (with_tape && outputs[i].grad) seeds.emplace_back(outputs[i], weight);
  }
  if (with_tape) {
    tape.backward(seeds);
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].grad) {
        result.gradients.emplace_back();
        continue;
      }
      if (!inputs[i].grad->written) inputs[i].grad->storage().fill_zero();
      result.gradients.push_back(host_copy(inputs[i].grad->storage()));
    }
  }
  return result;
}

}  // namespace

double tolerance(DType dtype, int64_t reduction) {
  if (dtype == DType::bf16) return 6 * 0x1p-9;
  if (dtype == DType::f16) return 10 * 0x1p-12;  // more: small numbers lose bits
  const double epsilon = dtype == DType::f64 ? 0x1p-53 : 0x1p-24;
  return 8 * epsilon * std::sqrt(static_cast<double>(reduction) + 16);
}

Threads& test_threads() {
  static Threads threads(2);
  return threads;
}

Tensor random_tensor(const std::string& stream, const Shape& shape, DType dtype, double low, double high) {
  const Rng rng(kSeed, stream);
  const Tensor values = Tensor::empty(shape, DType::f64);
  for (int64_t i = 0; i < values.count(); ++i)
    values.data<double>()[i] = low + (high - low) * rng.uniform(static_cast<uint64_t>(i));
  return values.to(dtype);
}

void expect_near(const Tensor& found, const Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(text(found.shape()), text(expected.shape())) << what;
  const Tensor a = host_copy(found), b = host_copy(expected);
  double squares = 0;
  int64_t finite = 0;
  for (int64_t i = 0; i < b.count(); ++i)
    if (std::isfinite(at(b, i))) squares += at(b, i) * at(b, i), ++finite;
  const double scale = finite ? std::sqrt(squares / static_cast<double>(finite)) : 0;
  double worst = -1;
  int64_t place = 0;
  for (int64_t i = 0; i < b.count(); ++i) {
    const double x = at(a, i), y = at(b, i);
    if (!std::isfinite(x) || !std::isfinite(y)) {
      const bool same = std::isnan(x) ? std::isnan(y) : x == y;
      ASSERT_TRUE(same) << what << ": element " << i << " is " << x << ", expected " << y;
      continue;
    }
    const double error = std::abs(x - y) / (std::abs(y) + scale + 1e-300);
    if (error > worst) worst = error, place = i;
  }
  if (worst > tolerance)
    ADD_FAILURE() << what << ": element " << place << " of " << b.shape() << " is " << at(a, place) << ", expected "
                  << at(b, place) << "; error " << worst << ", tolerance " << tolerance;
}

void check_gradient(const OpCase& op_case) {
  SCOPED_TRACE(op_case.name + " (gradient in f64; seed " + std::to_string(kSeed) + ")");
  const std::vector<Tensor> values = draw_inputs(op_case, DType::f64);
  const Run analytic = run(op_case, Device::ref(), values, true);
  constexpr double kStep = 1e-3;         // with the fourth-order formula: truncation 1e-12, rounding 1e-13
  constexpr int64_t kMostElements = 24;  // of one input; spread over it when it has more
  for (size_t input = 0; input < values.size(); ++input) {
    if (!analytic.gradients[input]) continue;
    const int64_t count = values[input].count();
    double largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(at(analytic.gradients[input], i)));
    const int64_t checks = std::min(count, kMostElements);
    for (int64_t k = 0; k < checks; ++k) {
      const int64_t i = k * count / checks;
      double* element = values[input].data<double>() + i;
      const double center = *element;
      const auto loss_at = [&](double offset) {
        *element = center + offset;
        const double loss = run(op_case, Device::ref(), values, false).loss;
        *element = center;
        return loss;
      };
      const double numeric =
          (8 * (loss_at(kStep) - loss_at(-kStep)) - (loss_at(2 * kStep) - loss_at(-2 * kStep))) / (12 * kStep);
      const double found = at(analytic.gradients[input], i);
      ASSERT_LE(std::abs(found - numeric), 1e-7 * std::max(std::abs(numeric), largest) + 1e-12)
          << "gradient of " << op_case.inputs[input].name << " at " << i << " is " << found << ", differences say "
          << numeric;
    }
  }
}

void check_cpu(const OpCase& op_case) {
  const Run expected = run(op_case, Device::ref(), draw_inputs(op_case, DType::f64), true);
  const std::vector<Tensor> values = draw_inputs(op_case, DType::f32);
  const double limit = tolerance(DType::f32, op_case.reduction);
  for_each_simd_target([&](const std::string& target) {
    SCOPED_TRACE(op_case.name + " on cpu " + target + " (seed " + std::to_string(kSeed) + ")");
    const Run found = run(op_case, Device::cpu(), values, true);
    ASSERT_EQ(found.outputs.size(), expected.outputs.size());
    for (size_t i = 0; i < expected.outputs.size(); ++i)
      expect_near(found.outputs[i], expected.outputs[i], limit, "output " + std::to_string(i));
    for (size_t i = 0; i < expected.gradients.size(); ++i)
      if (expected.gradients[i])
        expect_near(found.gradients[i], expected.gradients[i], limit, "gradient of " + op_case.inputs[i].name);
    const Run inference = run(op_case, Device::cpu(), values, false);
    for (size_t i = 0; i < expected.outputs.size(); ++i)
      expect_near(inference.outputs[i], found.outputs[i], 0, "output without a tape " + std::to_string(i));
  });
}

void check_cuda(const OpCase& op_case) {
  for (const DType stored : {DType::f32, DType::bf16, DType::f16}) {
    SCOPED_TRACE(op_case.name + " on cuda in " + std::string(name_of(stored)) + " (seed " + std::to_string(kSeed) +
                 ")");
    const std::vector<Tensor> exact = draw_inputs(op_case, DType::f64, stored);
    const Run expected = run(op_case, Device::ref(), exact, true, stored);
    const std::vector<Tensor> values = on_gpu(op_case, exact, stored);
    const double limit = std::max(tolerance(stored, op_case.reduction), tolerance(DType::f32, op_case.reduction));
    const Run found = run(op_case, Device::cuda(), values, true, stored);
    ASSERT_EQ(found.outputs.size(), expected.outputs.size());
    for (size_t i = 0; i < expected.outputs.size(); ++i)
      expect_near(found.outputs[i], expected.outputs[i], limit, "output " + std::to_string(i));
    const double gradient_limit = limit * (stored == DType::bf16  ? op_case.bf16_gradients
                                           : stored == DType::f16 ? op_case.f16_gradients
                                                                  : 1);
    for (size_t i = 0; i < expected.gradients.size(); ++i)
      if (expected.gradients[i])
        expect_near(found.gradients[i], expected.gradients[i], gradient_limit, "gradient of " + op_case.inputs[i].name);
    const Run again = run(op_case, Device::cuda(), values, true, stored);
    for (size_t i = 0; i < expected.outputs.size(); ++i)
      expect_near(again.outputs[i], found.outputs[i], 0, "second run, output " + std::to_string(i));
    for (size_t i = 0; i < expected.gradients.size(); ++i)
      if (expected.gradients[i])
        expect_near(again.gradients[i], found.gradients[i], 0, "second run, gradient of " + op_case.inputs[i].name);
    const Run inference = run(op_case, Device::cuda(), values, false, stored);
    for (size_t i = 0; i < expected.outputs.size(); ++i)
      expect_near(inference.outputs[i], found.outputs[i], limit, "output without a tape " + std::to_string(i));
  }
}

void check_op(const OpCase& op_case) {
  if (testing_the_gpu()) {
    if (!skipped_for_want_of_gpu()) check_cuda(op_case);
    return;
  }
  check_gradient(op_case);
  check_cpu(op_case);
}

std::vector<std::pair<Device, DType>> test_devices() {
  if (testing_the_gpu()) return {{Device::cuda(), DType::f32}};
  return {{Device::ref(), DType::f64}, {Device::ref(), DType::f32}, {Device::cpu(), DType::f32}};
}

bool skipped_for_want_of_gpu() {
  if (!testing_the_gpu()) return false;
  std::string why = "this program was built without CUDA";
  if constexpr (kHasCuda) {
    if (cuda::device_count() > 0) return false;
    why = cuda::why_no_device();
  }
  [&] { GTEST_SKIP() << why; }();
  return true;
}

void for_each_simd_target(const std::function<void(const std::string&)>& body) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace ssm::test
