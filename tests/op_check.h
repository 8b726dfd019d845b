// One declaration of a case checks an op on every device: its analytic gradient on `ref` in f64 against finite
// differences, its forward and backward against `ref` in f64 on `cpu` in f32, for every SIMD target this machine has,
// and on `cuda` in f32, bf16 and f16.
//
// The environment's SSM_TEST_DEVICE=cuda makes the same tests check the GPU, and only it; they skip where there is
// none.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/context.h"

namespace ssm::test {

// What a GPU keeps an input in when activations are bf16 or f16.
enum class Role {
  activation,  // the same, and its gradient
  weight,      // the same; its gradient is f32
  exact        // f32: states, the residual stream, the small parameters
};

struct OpInput {
  std::string name;
  Shape shape;
  double low = -1, high = 1;  // uniform in between
  Role role = Role::activation;
  bool differentiable = true;  // false: no gradient is asked for
};

struct OpCase {
  std::string name;
  std::vector<OpInput> inputs;
  // The op under test. Inputs arrive in order, in f64 (ref) or f32; absent inputs (shape of rank 0) arrive absent.
  std::function<std::vector<Var>(Ctx& ctx, const std::vector<Var>& inputs)> call;
  int64_t reduction = 1;  // terms in the longest sum behind one result: the tolerance grows with its root
  // Of tolerance(bf16) and tolerance(f16): more where a GPU also rounds the terms of a gradient to that type.
  double bf16_gradients = 1, f16_gradients = 1;
};

void check_gradient(const OpCase& op_case);  // ref in f64 against finite differences, 1e-7 relative
void check_cpu(const OpCase& op_case);       // cpu in f32 against ref in f64, and without a tape: the same bits
void check_cuda(const OpCase& op_case);      // cuda against ref, twice: the same bits
void check_op(const OpCase& op_case);        // all of them

// The devices, with the dtype of f64 where they know it, that tests go through: ref and cpu, or cuda alone.
std::vector<std::pair<Device, DType>> test_devices();
// True when the tests are to check the GPU and there is none: the test is marked as skipped then.
bool skipped_for_want_of_gpu();

// The one place tolerances are made: rounding of `reduction` additions in random order, eight times over. Sums of bf16
// and f16 are made in f32: their results are rounded a few times, whatever the reduction.
double tolerance(DType dtype, int64_t reduction);

// EXPECTs equal shapes, equal positions of NaN and infinities, and |found - expected| <= tolerance * (|expected| +
// root mean square of expected); reports the worst place and both values.
void expect_near(const Tensor& found, const Tensor& expected, double tolerance, const std::string& what);

// Calls body(name) with dispatch limited to each SIMD target in turn, then restores the choice.
void for_each_simd_target(const std::function<void(const std::string& name)>& body);

Tensor random_tensor(const std::string& stream, const Shape& shape, DType dtype, double low = -1, double high = 1);
Threads& test_threads();  // two, shared by the tests

}  // namespace ssm::test
