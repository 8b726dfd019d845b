#include "ops/ssm_kernel/ssm_kernel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>

#include "ops/diag_scan/diag_scan.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

struct KernelCase {
  int64_t length, e, n, parts = 2;
  bool low_rank = false;
};

OpCase op_case(const KernelCase& c) {
  const Shape modes = {c.parts, c.n, c.e}, low = c.low_rank ? modes : Shape{};
  return {.name = text("ssm_kernel length=", c.length, " e=", c.e, " n=", c.n, " parts=", c.parts,
                       c.low_rank ? " low rank" : ""),
          .inputs = {{"z", modes, -0.5, -0.3, Role::exact},
                     {"b", modes, -1, 1, Role::exact},
                     {"c", modes, -1, 1, Role::exact},
                     {"f", low, -0.2, 0.2, Role::exact},
                     {"g", low, -0.2, 0.2, Role::exact}},
          .call =
              [c](Ctx& ctx, const std::vector<Var>& in) {
                return std::vector<Var>{
                    ssm_kernel(ctx, {.z = in[0], .b = in[1], .c = in[2], .f = in[3], .g = in[4]}, c.length)};
              },
          .reduction = c.length + c.n};
}

TEST(SsmKernel, EveryDeviceAgreesOnUglySizes) {
  for (const KernelCase& c : std::vector<KernelCase>{
           {.length = 1, .e = 1, .n = 1},
           {.length = 63, .e = 7, .n = 3},
           {.length = 64, .e = 17, .n = 2},
           {.length = 66, .e = 16, .n = 5},
           {.length = 130, .e = 35, .n = 2},
           {.length = 65, .e = 5, .n = 3, .parts = 1},
           {.length = 2, .e = 3, .n = 2, .parts = 1},
           {.length = 2, .e = 1, .n = 3, .low_rank = true},
           {.length = 67, .e = 5, .n = 4, .low_rank = true},
           {.length = 700, .e = 3, .n = 2},
           {.length = 150, .e = 34, .n = 33, .low_rank = true},
           {.length = 0, .e = 3, .n = 2},
           {.length = 0, .e = 3, .n = 2, .low_rank = true},
       })
    check_op(op_case(c));
}

// A system of S4's sizes: slow and fast modes, and with `low_rank` LegS's strong coupling.
DiscretizeIn real_sizes(int64_t e, int64_t n, bool low_rank, Discretization method, DType dtype) {
  const auto random = [&](const char* name, const Shape& shape, double low, double high) {
    return Var{random_tensor(name, shape, dtype, low, high), {}};
  };
  DiscretizeIn in{.inv_dt = random("inv_dt", {e, 1}, std::log(1e-3), std::log(1e-1)),
                  .A_real = random("A_real", {1, n}, -1, 0),
                  .A_imag = random("A_imag", {1, n}, 0, 3.14 * static_cast<double>(n)),
                  .B = random("B", {1, 1, n, 2}, -1, 1),
                  .C = random("C", {1, e, n, 2}, -1, 1),
                  .method = method};
  if (low_rank) in.P = random("P", {1, 1, n, 2}, -3, 3);
  return in;
}

// K_l = 2 Re sum_k C_k B_k (e^(Delta lambda) - 1) / lambda e^(Delta lambda l), or the bilinear form of reference, term
// by term from the continuous parameters.
Tensor direct_sum(const DiscretizeIn& in, int64_t length) {
  const int64_t e = in.inv_dt.value.size(0), n = in.A_real.value.size(1);
  const Tensor K = Tensor::zeros({length, e}, DType::f64);
  using Long = std::complex<long double>;
  for (int64_t channel = 0; channel < e; ++channel) {
    const long double step = std::exp(static_cast<long double>(in.inv_dt.value.data<double>()[channel]));
    for (int64_t k = 0; k < n; ++k) {
      const Long lambda(-std::exp(static_cast<long double>(in.A_real.value.data<double>()[k])),
                        -in.A_imag.value.data<double>()[k]);
      const auto pair = [](const Var& of, int64_t i) {
        return Long(of.value.data<double>()[2 * i], of.value.data<double>()[2 * i + 1]);
      };
      const bool zoh = in.method == Discretization::zoh;
      const Long a = zoh ? std::exp(step * lambda) : (1.0L + step * lambda / 2.0L) / (1.0L - step * lambda / 2.0L);
      const Long b = zoh ? (a - 1.0L) / lambda : step / (1.0L - step * lambda / 2.0L);
      Long power = 2.0L * pair(in.C, channel * n + k) * pair(in.B, k) * b;
      for (int64_t l = 0; l < length; ++l, power *= a)
        K.data<double>()[l * e + channel] += static_cast<double>(power.real());
    }
  }
  return K;
}

double largest(const Tensor& tensor) {
  double most = 0;
  for (const double value : tensor.span<double>()) most = std::max(most, std::abs(value));
  return most;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  double most = 0;
  for (int64_t i = 0; i < a.count(); ++i) most = std::max(most, std::abs(a.data<double>()[i] - b.data<double>()[i]));
  return most;
}

TEST(SsmKernel, VandermondeIsTheDirectSum) {
  for (const Discretization method : {Discretization::zoh, Discretization::bilinear}) {
    const Ctx exact{Device::ref(), &test_threads()};
    const DiscretizeIn in = real_sizes(3, 32, false, method, DType::f64);
    const Tensor expected = direct_sum(in, 4096);
    const Tensor found = ssm_kernel(exact, discretize(exact, in), 4096).value;
    EXPECT_LT(largest_difference(found, expected), 1e-10 * largest(expected));
    // In f32, from parameters that f32 holds: the powers stay exact however long the kernel.
    const Ctx fast{Device::cpu(), &test_threads()};
    const Tensor single = ssm_kernel(fast, discretize(fast, real_sizes(3, 32, false, method, DType::f32)), 4096).value;
    EXPECT_LT(largest_difference(single.to(DType::f64), expected), 1e-5 * largest(expected));
  }
}

// The Cauchy products against the O(n L) sum, which ref takes by the recurrence, both in f64.
TEST(SsmKernel, CauchyWithWoodburyIsTheDirectSum) {
  const Ctx exact{Device::ref(), &test_threads()};
  for (const int64_t length : {1, 7, 100, 1024, 4097}) {
    const StateSpace system = discretize(exact, real_sizes(3, 32, true, Discretization::bilinear, DType::f64));
    const Tensor expected = ssm_kernel(exact, system, length).value, found = Tensor::empty({length, 3}, DType::f64);
    for_each_simd_target([&](const std::string& target) {
      cpu::ssm_kernel_forward({.z = system.z.value,
                               .b = system.b.value,
                               .c = system.c.value,
                               .f = system.f.value,
                               .g = system.g.value,
                               .K = found},
                              test_threads());
      EXPECT_LT(largest_difference(found, expected), 1e-10 * largest(expected)) << target << ", length " << length;
    });
  }
}

// In f32, from a system that f32 holds, powers stay exact however long the kernel: against the recurrence in f64.
TEST(SsmKernel, EveryDeviceIsTheImpulseResponseOfTheScan) {
  if (skipped_for_want_of_gpu()) return;
  const Device device = test_devices().back().first;
  const Ctx exact{Device::ref(), &test_threads()}, fast{device, &test_threads()};
  for (const bool low_rank : {false, true}) {
    const int64_t length = 3000, e = 9;
    StateSpace system = discretize(exact, real_sizes(e, 16, low_rank, Discretization::bilinear, DType::f32)), there;
    for (const auto& [from, to] : {std::pair{&system.z, &there.z},
                                   {&system.b, &there.b},
                                   {&system.c, &there.c},
                                   {&system.f, &there.f},
                                   {&system.g, &there.g}}) {
      if (!*from) continue;
      to->value = from->value.on(device);
      from->value = from->value.to(DType::f64);
    }
    const Tensor expected = ssm_kernel(exact, system, length).value;
    const Tensor K = ssm_kernel(fast, there, length).value.on(Device::cpu()).to(DType::f64);
    EXPECT_LT(largest_difference(K, expected), 1e-5 * largest(expected)) << (low_rank ? "low rank" : "diagonal");
    const Tensor u = Tensor::zeros({length, e}, DType::f32);
    for (int64_t i = 0; i < e; ++i) u.data<float>()[i] = 1;
    const Tensor scanned = diag_scan(fast, there, {u.on(device), {}}, {}, Seqs::dense(1, length), nullptr)
                               .value.on(Device::cpu())
                               .to(DType::f64);
    EXPECT_LT(largest_difference(K, scanned), 1e-5 * largest(scanned)) << (low_rank ? "low rank" : "diagonal");
  }
}

TEST(SsmKernel, GradientsDoNotDependOnTheNumberOfThreads) {
  for (const bool low_rank : {false, true}) {
    std::vector<Tensor> first;
    for (const int count : {1, 2, 3}) {
      Threads threads(count);
      Tape tape;
      const Ctx ctx{Device::cpu(), &threads, &tape};
      DiscretizeIn in = real_sizes(40, 5, low_rank, Discretization::bilinear, DType::f32);
      for (Var* var : {&in.inv_dt, &in.A_real, &in.A_imag, &in.B, &in.C}) *var = tape.variable(var->value);
      const Var K = ssm_kernel(ctx, discretize(ctx, in), 200);
      tape.backward({{K, random_tensor("dK", {200, 40}, DType::f32)}});
      std::vector<Tensor> gradients;
      for (const Var* var : {&in.inv_dt, &in.A_real, &in.A_imag, &in.B, &in.C}) gradients.push_back(var->grad->value);
      if (first.empty()) first = gradients;
      for (size_t i = 0; i < gradients.size(); ++i) expect_near(gradients[i], first[i], 0, text("gradient ", i));
    }
  }
}

TEST(SsmKernel, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const auto zeros = [](const Shape& shape) { return Var{Tensor::zeros(shape, DType::f32), {}}; };
  StateSpace system{.z = zeros({2, 3, 4}), .b = zeros({2, 3, 4}), .c = zeros({2, 3, 4})};
  EXPECT_NO_THROW(ssm_kernel(ctx, system, 5));
  EXPECT_THROW(ssm_kernel(ctx, system, -1), Error);
  system.f = zeros({2, 3, 4});
  EXPECT_THROW(ssm_kernel(ctx, system, 5), Error);
  system.f = {};
  system.c = zeros({1, 3, 4});
  EXPECT_THROW(ssm_kernel(ctx, system, 5), Error);
}

}  // namespace
}  // namespace ssm::test
