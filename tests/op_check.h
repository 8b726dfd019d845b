// One declaration of a case checks an op three ways: its analytic gradient on `ref` in f64 against finite differences,
// and its forward and backward on `cpu` in f32, for every SIMD target this machine has, against `ref` in f64.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/context.h"

namespace ssm::test {

struct OpInput {
  std::string name;
  Shape shape;
  double low = -1, high = 1;   // uniform in between
  bool differentiable = true;  // false: no gradient is asked for
};

struct OpCase {
  std::string name;
  std::vector<OpInput> inputs;
  // The op under test. Inputs arrive in order, in f64 (ref) or f32; absent inputs (shape of rank 0) arrive absent.
  std::function<std::vector<Var>(Ctx& ctx, const std::vector<Var>& inputs)> call;
  int64_t reduction = 1;  // terms in the longest sum behind one result: the tolerance grows with its root
};

void check_gradient(const OpCase& op_case);  // ref in f64 against finite differences, 1e-7 relative
void check_cpu(const OpCase& op_case);       // cpu in f32 against ref in f64, and without a tape: the same bits
void check_op(const OpCase& op_case);        // both

// The one place tolerances are made: rounding of `reduction` additions in random order, eight times over.
double tolerance(DType dtype, int64_t reduction);

// EXPECTs equal shapes, equal positions of NaN and infinities, and |found - expected| <= tolerance * (|expected| +
// root mean square of expected); reports the worst place and both values.
void expect_near(const Tensor& found, const Tensor& expected, double tolerance, const std::string& what);

// Calls body(name) with dispatch limited to each SIMD target in turn, then restores the choice.
void for_each_simd_target(const std::function<void(const std::string& name)>& body);

Tensor random_tensor(const std::string& stream, const Shape& shape, DType dtype, double low = -1, double high = 1);
Threads& test_threads();  // two, shared by the tests

}  // namespace ssm::test
