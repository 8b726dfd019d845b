#include "ops/ssd/ssd.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

enum class SkipForm { none, of_heads, of_channels };  // D

struct Sizes {
  std::vector<int64_t> lengths;
  int64_t m, p, g, n;
  bool with_state = true, with_bias = true;
  SkipForm D = SkipForm::of_heads;
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();
};

OpCase ssd_case(const Sizes& sizes) {
  const int64_t t = std::accumulate(sizes.lengths.begin(), sizes.lengths.end(), int64_t{0});
  const auto count = static_cast<int64_t>(sizes.lengths.size());
  const int64_t m = sizes.m, p = sizes.p, g = sizes.g, n = sizes.n;
  std::vector<int64_t> slots;
  for (int64_t s = 0; s < count; ++s) slots.push_back(count - s);  // permuted, and slot 0 belongs to nobody
  const Seqs seqs = Seqs::ragged(sizes.lengths, slots);
  const Shape none, D = sizes.D == SkipForm::none ? none : Shape{sizes.D == SkipForm::of_heads ? m : m * p};
  return {.name = text("ssd of ", count, " sequences, t=", t, " m=", m, " p=", p, " g=", g, " n=", n),
          .inputs = {{"x", {t, m * p}},
                     {"dt", {t, m}, -3, 1},
                     {"A_log", {m}, -1, 1.5, Role::exact},
                     {"B", {t, g * n}},
                     {"C", {t, g * n}},
                     {"D", D, -1, 1, Role::exact},
                     {"dt_bias", sizes.with_bias ? Shape{m} : none, -1, 1, Role::exact},
                     {"state", sizes.with_state ? Shape{count + 1, m, n, p} : none, -1, 1, Role::exact}},
          .call =
              [=](Ctx& ctx, const std::vector<Var>& in) {
                Var state = in[7];
                const Var y = ssd(ctx,
                                  {.x = in[0],
                                   .dt = in[1],
                                   .A_log = in[2],
                                   .B = in[3],
                                   .C = in[4],
                                   .D = in[5],
                                   .dt_bias = in[6],
                                   .groups = g,
                                   .dt_min = sizes.dt_min,
                                   .dt_max = sizes.dt_max},
                                  seqs, state ? &state : nullptr);
                return std::vector<Var>{y, state};
              },
          .reduction = std::max(t, m * p) * 4};
}

TEST(Ssd, EveryDeviceAgreesOnUglySizes) {
  check_op(ssd_case({{1}, 1, 1, 1, 1}));
  check_op(ssd_case({{5}, 2, 3, 1, 2, false}));
  check_op(ssd_case({{2, 0, 7, 1}, 6, 5, 3, 4}));
  check_op(ssd_case({{9}, 4, 1, 4, 3, true, false, SkipForm::none}));
  check_op(ssd_case({{11, 3, 40}, 4, 24, 4, 4, true, true, SkipForm::of_channels}));
  check_op(ssd_case({{23}, 2, 17, 2, 1}));
  // Up to 12 tokens go by the recurrence, chunks have 32.
  for (const int64_t t : {12, 13, 31, 32, 33, 64, 67}) check_op(ssd_case({{t}, 3, 5, 1, 3}));
  for (const int64_t t : {kSsdSpan - 1, kSsdSpan, kSsdSpan + 1}) check_cpu(ssd_case({{t, 2}, 3, 5, 1, 3}));
  check_cpu(ssd_case({{kSsdSpan * 2 + 45, 300}, 2, 8, 2, 7}));
  check_cpu(ssd_case({{6, 50}, 2, 9, 1, 256}));
  check_cpu(ssd_case({{45}, 19, 2, 1, 5, true, true, SkipForm::of_channels}));  // several blocks of heads
  check_cpu(ssd_case({{33, 70, 5}, 4, 64, 2, 128}));
}

TEST(Ssd, EveryDeviceLimitsSteps) {
  // Steps of these inputs lie in (0.02, 2.1): some are below, some within, some above.
  check_op(ssd_case({{7, 20}, 3, 2, 1, 4, true, true, SkipForm::of_heads, 0.1, 0.5}));
  check_op(ssd_case({{17}, 3, 2, 1, 4, true, true, SkipForm::of_heads, 0.3, 0.3}));
  check_op(ssd_case({{17}, 3, 2, 1, 4, true, true, SkipForm::of_heads, 0, 0}));
}

// Several spans, runs that end in the middle, states beyond a warp, heads in several tiles and in several blocks; and
// single tokens, which check_cuda gives to the step when there is no tape.
TEST(SsdCuda, SpansTilesBlocksAndSteps) {
  if (!test_devices().front().first.is_cuda() || skipped_for_want_of_gpu()) return;
  for (const int64_t t : {kSsdSpan - 1, kSsdSpan, kSsdSpan + 1}) check_cuda(ssd_case({{t, 2}, 3, 5, 1, 3}));
  check_cuda(ssd_case({{kSsdSpan * 2 + 45, 300}, 2, 8, 2, 7}));
  check_cuda(ssd_case({{6, 50}, 2, 9, 1, 256}));
  check_cuda(ssd_case({{45}, 19, 2, 1, 5, true, true, SkipForm::of_channels}));
  check_cuda(ssd_case({{33, 70, 5}, 4, 64, 2, 128}));
  check_cuda(ssd_case({{20}, 2, 100, 1, 300, true, true, SkipForm::of_channels}));
  check_cuda(ssd_case({{18}, 1, 3, 1, 512}));
  check_cuda(ssd_case({{1, 1, 1}, 6, 64, 2, 128}));
  check_cuda(ssd_case({{1, 1}, 2, 5, 1, 130, true, false, SkipForm::of_channels}));
  for (const int64_t p : {1030, 1036}) check_cuda(ssd_case({{1}, 1, p, 1, 3}));
}

struct Problem {
  Tensor x, dt, A_log, B, C, D, bias;
  int64_t m, p, g, n;
  Problem(int64_t t, int64_t heads, int64_t width, int64_t groups, int64_t states, DType dtype)
      : x(random_tensor("x", {t, heads * width}, dtype)),
        dt(random_tensor("dt", {t, heads}, dtype, -3, 1)),
        A_log(random_tensor("A_log", {heads}, dtype, -1, 1.5)),
        B(random_tensor("B", {t, groups * states}, dtype)),
        C(random_tensor("C", {t, groups * states}, dtype)),
        D(random_tensor("D", {heads}, dtype)),
        bias(random_tensor("bias", {heads}, dtype)),
        m(heads),
        p(width),
        g(groups),
        n(states) {}
  Problem to(DType dtype) const {
    Problem other = *this;
    for (Tensor* one : {&other.x, &other.dt, &other.A_log, &other.B, &other.C, &other.D, &other.bias})
      *one = one->to(dtype);
    return other;
  }
  Tensor run(const Ctx& ctx, int64_t begin, int64_t end, const Seqs& seqs, Var* state) const {
    const auto rows = [&](const Tensor& all) { return Var{all.rows(begin, end), {}}; };
    return ssd(ctx,
               {.x = rows(x),
                .dt = rows(dt),
                .A_log = {A_log, {}},
                .B = rows(B),
                .C = rows(C),
                .D = {D, {}},
                .dt_bias = {bias, {}},
                .groups = g},
               seqs, state)
        .value;
  }
};

// The three forms README.md derives, on one head: the recurrence (2) and (3), written out here; the masked matrix
// (L o C B^T) X of (5), written out here; and the chunks (7) and (8), which are what `cpu` runs.
TEST(Ssd, RecurrenceMatrixAndChunksAreTheSameNumbers) {
  const int64_t t = 100, p = 3, n = 5;
  const Problem problem(t, 1, p, 1, n, DType::f64);
  const auto x = problem.x.matrix<double>(), dt = problem.dt.matrix<double>(), B = problem.B.matrix<double>(),
             C = problem.C.matrix<double>();
  const double A = -std::exp(problem.A_log.item<double>()), bias = problem.bias.item<double>(),
               D = problem.D.item<double>();
  std::vector<double> delta, a;
  for (int64_t i = 0; i < t; ++i) {
    delta.push_back(std::log1p(std::exp(dt[i][0] + bias)));
    a.push_back(std::exp(delta.back() * A));
  }

  const Tensor recurrence = Tensor::zeros({t, p}, DType::f64), matrix = Tensor::zeros({t, p}, DType::f64);
  std::vector<double> S(static_cast<size_t>(n * p), 0);  // (n, p)
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t c = 0; c < p; ++c) {
      double& y = recurrence.matrix<double>()[i][c];
      y = D * x[i][c];
      for (int64_t k = 0; k < n; ++k) {
        double& state = S[static_cast<size_t>(k * p + c)];
        state = a[static_cast<size_t>(i)] * state + delta[static_cast<size_t>(i)] * B[i][k] * x[i][c];
        y += C[i][k] * state;
      }
    }
  }
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double L = 1, CB = 0;
      for (int64_t k = j + 1; k <= i; ++k) L *= a[static_cast<size_t>(k)];
      for (int64_t k = 0; k < n; ++k) CB += C[i][k] * B[j][k];
      for (int64_t c = 0; c < p; ++c)
        matrix.matrix<double>()[i][c] += L * CB * delta[static_cast<size_t>(j)] * x[j][c] + (i == j ? D * x[i][c] : 0);
    }
  }
  expect_near(matrix, recurrence, tolerance(DType::f64, t * n), "the masked matrix");
  const Ctx ref{Device::ref(), &test_threads()}, cpu{Device::cpu(), &test_threads()};
  expect_near(problem.run(ref, 0, t, Seqs::dense(1, t), nullptr), recurrence, tolerance(DType::f64, t * n), "ref");
  for_each_simd_target([&](const std::string& target) {
    expect_near(problem.to(DType::f32).run(cpu, 0, t, Seqs::dense(1, t), nullptr), recurrence,
                tolerance(DType::f32, t * n), "chunks, " + target);
  });
}

TEST(Ssd, PiecesWithCarriedStateEqualTheWhole) {
  const int64_t t = 150, m = 4, p = 9, n = 6;
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    const Problem problem(t, m, p, 2, n, DType::f32);
    const double limit = device.is_ref() ? 0 : tolerance(DType::f32, t);  // the order of the sums differs on cpu
    Var whole_state{Tensor::zeros({1, m, n, p}, DType::f32), {}};
    const Tensor whole = problem.run(ctx, 0, t, Seqs::dense(1, t), &whole_state);
    for (const int64_t piece : {1, 7, 12, 32, 45, 149}) {
      Var state{Tensor::zeros({1, m, n, p}, DType::f32), {}};
      for (int64_t begin = 0; begin < t; begin += piece) {
        const int64_t end = std::min(t, begin + piece);
        expect_near(problem.run(ctx, begin, end, Seqs::dense(1, end - begin), &state), whole.rows(begin, end), limit,
                    text("pieces of ", piece));
      }
      expect_near(state.value, whole_state.value, limit, "final state");
    }
  }
}

TEST(Ssd, SameBitsForAnyNumberOfThreadsAndAnyNeighbours) {
  const Problem problem(140, 20, 5, 2, 7, DType::f32);
  const Seqs seqs = Seqs::ragged(std::vector<int64_t>{90, 10, 40});
  std::vector<Tensor> first;
  for (const int count : {1, 2, 3}) {
    Threads threads(count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    std::vector<Var> in;
    for (const Tensor* one :
         {&problem.x, &problem.dt, &problem.A_log, &problem.B, &problem.C, &problem.D, &problem.bias})
      in.push_back(tape.variable(*one));
    const Var y = ssd(
        ctx,
        {.x = in[0], .dt = in[1], .A_log = in[2], .B = in[3], .C = in[4], .D = in[5], .dt_bias = in[6], .groups = 2},
        seqs, nullptr);
    tape.backward({{y, random_tensor("dy", y.value.shape(), DType::f32)}});
    std::vector<Tensor> found = {y.value};
    for (const Var& var : in) found.push_back(var.grad->value);
    if (first.empty()) first = found;
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_EQ(0, std::memcmp(found[i].raw(), first[i].raw(), static_cast<size_t>(found[i].bytes())))
          << "tensor " << i << ", " << count << " threads";
  }
  const Ctx ctx{Device::cpu(), &test_threads()};
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t begin = seqs.offsets[static_cast<size_t>(s)], end = seqs.offsets[static_cast<size_t>(s) + 1];
    expect_near(problem.run(ctx, begin, end, Seqs::dense(1, end - begin), nullptr), first[0].rows(begin, end), 0,
                text("sequence ", s, " alone"));
  }
}

TEST(Ssd, NotANumberStaysInItsHeadAndAfterItsToken) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const int64_t t = 40, m = 4, p = 3;
  for (const int64_t length : {t, int64_t{8}}) {  // in chunks, and by the recurrence
    for (const Device device : {Device::ref(), Device::cpu()}) {
      const auto expect_from = [&](const Problem& problem, int64_t token, const auto& touched, const char* what) {
        const Tensor y = problem.run({device, &test_threads()}, 0, length, Seqs::dense(1, length), nullptr);
        for (int64_t i = 0; i < length; ++i)
          for (int64_t c = 0; c < m * p; ++c)
            EXPECT_EQ(!std::isfinite(y.matrix<float>()[i][c]), touched(c) && i >= token)
                << what << ": " << i << ", " << c << " of " << length << " tokens";
      };
      const int64_t token = length / 2 + 1;
      Problem problem(t, m, p, 2, 5, DType::f32);
      problem.dt.matrix<float>()[token][2] = nan;
      expect_from(
          problem, token, [&](int64_t c) { return c / p == 2; }, "dt");
      problem = Problem(t, m, p, 2, 5, DType::f32);
      problem.x.matrix<float>()[token][4] = infinity;
      expect_from(
          problem, token, [](int64_t c) { return c == 4; }, "x");
      problem = Problem(t, m, p, 2, 5, DType::f32);
      problem.B.matrix<float>()[token][7] = nan;  // of the second group
      expect_from(
          problem, token, [&](int64_t c) { return c / p >= 2; }, "B");
    }
  }
}

TEST(Ssd, LargeStepsForgetAndSmallStepsKeep) {
  // Steps times A from -1e-6 (a state that lives for a million tokens) to -1e5 (the decay underflows) side by side:
  // f32 against f64, forward and backward.
  const int64_t t = 300, m = 5, p = 4, n = 6;
  Problem wide(t, m, p, 1, n, DType::f32);
  for (int64_t i = 0; i < wide.dt.count(); ++i) wide.dt.data<float>()[i] = -14.0f + 3.0f * static_cast<float>(i % 11);
  std::vector<std::vector<Tensor>> results;
  for (const auto& [device, dtype] : {std::pair{Device::ref(), DType::f64}, {Device::cpu(), DType::f32}}) {
    Tape tape;
    const Ctx ctx{device, &test_threads(), &tape};
    const Problem own = wide.to(dtype);
    std::vector<Var> in;
    for (const Tensor* one : {&own.x, &own.dt, &own.A_log, &own.B, &own.C, &own.D, &own.bias})
      in.push_back(tape.variable(*one));
    Var state = tape.variable(random_tensor("state", {1, m, n, p}, DType::f32).to(dtype));
    const GradPtr dstate = state.grad;
    const Var y =
        ssd(ctx, {.x = in[0], .dt = in[1], .A_log = in[2], .B = in[3], .C = in[4], .D = in[5], .dt_bias = in[6]},
            Seqs::dense(1, t), &state);
    tape.backward({{y, random_tensor("dy", y.value.shape(), DType::f32).to(dtype)},
                   {state, random_tensor("dstate", state.value.shape(), DType::f32).to(dtype)}});
    results.push_back({y.value, state.value, dstate->value});
    for (const Var& var : in) results.back().push_back(var.grad->value);
  }
  for (size_t i = 0; i < results[0].size(); ++i)
    expect_near(results[1][i], results[0][i], tolerance(DType::f32, n * t), text("tensor ", i));
}

TEST(Ssd, LongInputsThatDecayStronglyStayFinite) {
  // The sum of the exponents over the input is -4e5: nothing but differences of it may ever be taken to a power.
  const int64_t t = 5000, m = 2, p = 2, n = 3;
  Problem problem(t, m, p, 1, n, DType::f32);
  for (int64_t i = 0; i < problem.dt.count(); ++i) problem.dt.data<float>()[i] = i % 7 < 3 ? 30.0f : -4.0f;
  const Tensor found = problem.run({Device::cpu(), &test_threads()}, 0, t, Seqs::dense(1, t), nullptr);
  const Tensor exact = problem.to(DType::f64).run({Device::ref(), &test_threads()}, 0, t, Seqs::dense(1, t), nullptr);
  expect_near(found, exact, tolerance(DType::f32, n * 64), "y");
}

TEST(Ssd, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const auto throws = [&](const Problem& problem, int64_t tokens, Var* state) {
    EXPECT_THROW(problem.run(ctx, 0, 4, Seqs::dense(1, tokens), state), Error);
  };
  const Problem right(4, 4, 3, 2, 2, DType::f32);
  throws(right, 3, nullptr);
  Var state{Tensor::zeros({1, 4, 3, 2}, DType::f32), {}};  // p and n the wrong way round
  throws(right, 4, &state);
  Problem problem = right;
  problem.g = 3;
  throws(problem, 4, nullptr);
  problem = right, problem.C = Tensor::zeros({4, 5}, DType::f32);
  throws(problem, 4, nullptr);
  problem = right, problem.D = Tensor::zeros({6}, DType::f32);
  throws(problem, 4, nullptr);
  problem = right, problem.x = Tensor::zeros({4, 13}, DType::f32);
  throws(problem, 4, nullptr);
}

}  // namespace
}  // namespace ssm::test
