#include "ops/selective_scan/selective_scan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/rng.h"
#include "ops/linear/linear.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

struct Sizes {
  std::vector<int64_t> lengths;
  int64_t e, n;
  bool with_state = true, with_options = true;  // options: z, D, dt_bias
};

OpCase scan_case(const Sizes& sizes) {
  const int64_t t = std::accumulate(sizes.lengths.begin(), sizes.lengths.end(), int64_t{0}), e = sizes.e, n = sizes.n;
  const auto count = static_cast<int64_t>(sizes.lengths.size());
  std::vector<int64_t> slots;
  for (int64_t s = 0; s < count; ++s) slots.push_back(count - s);  // permuted, and slot 0 belongs to nobody
  const Seqs seqs = Seqs::ragged(sizes.lengths, slots);
  const Shape none, vector = sizes.with_options ? Shape{e} : none;
  return {.name = text("scan of ", count, " sequences, t=", t, " e=", e, " n=", n),
          .inputs = {{"x", {t, e}},
                     {"dt", {t, e}, -3, 1},
                     {"A_log", {e, n}, -1, 1.5, Role::exact},
                     {"B", {t, n}},
                     {"C", {t, n}},
                     {"D", vector, -1, 1, Role::exact},
                     {"dt_bias", vector, -1, 1, Role::exact},
                     {"z", sizes.with_options ? Shape{t, e} : none, -2, 2},
                     {"h", sizes.with_state ? Shape{count + 1, n, e} : none, -1, 1, Role::exact}},
          .call =
              [seqs](Ctx& ctx, const std::vector<Var>& in) {
                Var h = in[8];
                const Var y = selective_scan(ctx, {in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]}, seqs,
                                             h ? &h : nullptr);
                return std::vector<Var>{y, h};
              },
          .reduction = std::max(t, e) * 4 + 16,
          .bf16_gradients = 3};  // the states that (14) and (15) sum are rounded too: README.md
}

TEST(SelectiveScan, EveryDeviceAgreesOnUglySizes) {
  check_op(scan_case({{1}, 1, 1}));
  check_op(scan_case({{5}, 3, 2, false}));
  check_op(scan_case({{2, 0, 7, 1}, 7, 5}));
  check_op(scan_case({{9}, 17, 16, true, false}));
  for (const int64_t t : {kScanChunk - 1, kScanChunk, kScanChunk + 1}) check_op(scan_case({{t}, 5, 3}));
  check_op(scan_case({{kScanChunk * 2 + 3, 4}, 3, 4}));
  check_cpu(scan_case({{70, 3}, 64, 16}));
  check_cpu(scan_case({{33}, 131, 16}));
  check_cpu(scan_case({{3}, 1100, 2}));  // more blocks of channels than backward tasks
  check_cpu(scan_case({{6}, 9, 256}));
}

// What the GPU's kernels are cut by: tiles of 16, 32 and 64 tokens, slabs of 16 and more channels, strips of 16 bytes,
// 16, 64 and 256 states, pieces of a long sequence.
TEST(SelectiveScan, AgreesAtTheBoundariesOfGpuKernels) {
  if (skipped_for_want_of_gpu()) return;
  const auto check = test_devices().back().first.is_cuda() ? check_cuda : check_cpu;
  check(scan_case({{15, 16, 17, 31, 33, 63, 65, 1, 0, 129}, 40, 16}));
  for (const int64_t n : {1, 3, 8, 16, 17, 64, 65, 256}) check(scan_case({{70, 3}, 24, n}));
  check(scan_case({{33}, 131, 16}));                        // rows begin anywhere
  check(scan_case({{40, 9}, 2176, 16}));                    // channels enough for the wide slabs
  check(scan_case({{2100, 100}, 8, 16}));                   // few enough for time to be cut
  check(scan_case({std::vector<int64_t>(600, 3), 20, 4}));  // more pieces than backward keeps sums of parameters for
  check(scan_case({{3, 1, 4}, 48, 16}));                    // few tokens: without a tape, the step
  check(scan_case({{1, 1}, 33, 20, false}));
}

// B and C are columns of a wider product in the mixer, z of another: their rows are strided, and begin on a boundary of
// 16 bytes or not.
TEST(SelectiveScan, InputsMayBeColumnsOfWiderTensors) {
  if (skipped_for_want_of_gpu()) return;
  const int64_t e = 48, n = 16;
  const Device tested = test_devices().back().first;
  const std::vector<DType> dtypes =
      tested.is_cuda() ? std::vector{DType::f32, DType::bf16, DType::f16} : std::vector{DType::f32};
  for (const DType dtype : dtypes)
    for (const int64_t before : {int64_t{48}, int64_t{3}})
      for (const int64_t t : {1, 70}) {
        const auto input = [&](const char* name, const Shape& shape, DType stored, double low, double high) {
          return random_tensor(name, shape, DType::f32, low, high).to(stored);
        };
        const Tensor x = input("x", {t, e}, dtype, -1, 1), dt = input("dt", {t, e}, dtype, -3, 1),
                     xz = input("xz", {t, 2 * e + 1}, dtype, -2, 2),
                     all = input("dt, B, C", {t, before + 2 * n}, dtype, -1, 1),
                     A_log = input("A_log", {e, n}, DType::f32, -1, 1.5);
        const auto run = [&](const Device& device, DType activations) {
          const auto there = [&](const Tensor& tensor) { return tensor.to(activations).on(device); };
          const Tensor wide = there(all), gates = there(xz);
          const Ctx ctx{device, &test_threads()};
          const ScanIn in{.x = {there(x), {}},
                          .dt = {there(dt), {}},
                          .A_log = {(device.is_ref() ? A_log.to(DType::f64) : A_log).on(device), {}},
                          .B = {wide.columns(before, before + n), {}},
                          .C = {wide.columns(before + n, before + 2 * n), {}},
                          .z = {gates.columns(e, 2 * e), {}}};
          return selective_scan(ctx, in, Seqs::dense(1, t), nullptr).value.on(Device::cpu()).to(DType::f32);
        };
        expect_near(run(tested, dtype), run(Device::ref(), DType::f64),
                    std::max(tolerance(dtype, 4 * e), tolerance(DType::f32, 4 * e)),
                    text(name_of(dtype), ", B from column ", before, ", t ", t));
      }
}

struct Problem {
  Tensor x, dt, A_log, B, C, D, bias, z;
  Problem(int64_t t, int64_t e, int64_t n, DType dtype)
      : x(random_tensor("x", {t, e}, dtype)),
        dt(random_tensor("dt", {t, e}, dtype, -3, 1)),
        A_log(random_tensor("A_log", {e, n}, dtype, -1, 1.5)),
        B(random_tensor("B", {t, n}, dtype)),
        C(random_tensor("C", {t, n}, dtype)),
        D(random_tensor("D", {e}, dtype)),
        bias(random_tensor("bias", {e}, dtype)),
        z(random_tensor("z", {t, e}, dtype)) {}
  Tensor run(const Ctx& ctx, int64_t begin, int64_t end, const Seqs& seqs, Var* h) const {
    const auto rows = [&](const Tensor& all) { return Var{all.rows(begin, end), {}}; };
    return selective_scan(ctx, {rows(x), rows(dt), {A_log, {}}, rows(B), rows(C), {D, {}}, {bias, {}}, rows(z)}, seqs,
                          h)
        .value;
  }
};

// A product of what the scan gives, whose weight's gradient waits for the scan's backward to make that again: alone,
// and with the scan in a part of the model that runs twice.
OpCase awaited_case(const Sizes& sizes, bool twice) {
  OpCase result = scan_case(sizes);
  const Seqs seqs = Seqs::ragged(sizes.lengths);
  result.name += twice ? ", awaited after a second run" : ", awaited";
  result.inputs.back() = {"weight", {5, sizes.e}, -1, 1, Role::weight};
  result.call = [seqs, twice](Ctx& ctx, const std::vector<Var>& in) {
    const auto scan = [=](const Ctx& c, const std::vector<Var>& xz) -> std::vector<Var> {
      return {selective_scan(c, {xz[0], in[1], in[2], in[3], in[4], in[5], in[6], xz[1]}, seqs, nullptr)};
    };
    const std::vector<Var> xz = {in[0], in[7]};
    const Var y = (twice ? recompute(ctx, "scan", true, xz, scan) : scan(ctx, xz))[0];
    return std::vector<Var>{linear(ctx, y, in[8])};
  };
  return result;
}

TEST(SelectiveScan, WhoWaitsForTheOutputGetsItInTheBackward) {
  for (const bool twice : {false, true}) {
    check_op(awaited_case({{2, 0, 7, 1}, 7, 5}, twice));
    check_op(awaited_case({{9}, 17, 16, false, false}, twice));
    check_op(awaited_case({{kScanChunk * 2 + 3, 4}, 3, 4}, twice));
  }
  if (skipped_for_want_of_gpu()) return;
  const auto check = test_devices().back().first.is_cuda() ? check_cuda : check_cpu;
  check(awaited_case({{15, 16, 17, 31, 33, 63, 65, 1, 0, 129}, 40, 16}, true));
  check(awaited_case({{70, 3}, 24, 65}, false));
  check(awaited_case({{2100, 100}, 8, 16}, true));
}

TEST(SelectiveScan, WhoWaitsForTheOutputSavesNothing) {
  const Problem problem(6, 8, 4, DType::f64);
  for (const auto& [recompute, bytes] :
       {std::pair<Recompute, int64_t>{Recompute::cheap, 0}, {Recompute::nothing, 6 * 8 * 8}}) {
    Tape tape;
    const Ctx ctx{.device = Device::ref(), .threads = &test_threads(), .tape = &tape, .recompute = recompute};
    const Var weight = tape.variable(random_tensor("weight", {3, 8}, DType::f64));
    tape.mark_parameter(weight.value);
    const ScanIn in{.x = tape.variable(problem.x),
                    .dt = tape.variable(problem.dt),
                    .A_log = tape.variable(problem.A_log),
                    .B = tape.variable(problem.B),
                    .C = tape.variable(problem.C)};
    linear(ctx, selective_scan(ctx, in, Seqs::dense(1, 6), nullptr), weight);
    const std::vector<SavedBytes> report = tape.report();
    const auto row = std::find_if(report.begin(), report.end(), [](const SavedBytes& r) { return r.op == "linear"; });
    ASSERT_NE(row, report.end());
    EXPECT_EQ(row->bytes, bytes);
  }
}

TEST(SelectiveScan, PiecesWithCarriedStateEqualTheWhole) {
  const int64_t t = 150, e = 21, n = 16;
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const Ctx ctx{device, &test_threads()};
    const Problem problem(t, e, n, DType::f32);
    Var whole_state{Tensor::zeros({1, n, e}, DType::f32), {}};
    const Tensor whole = problem.run(ctx, 0, t, Seqs::dense(1, t), &whole_state);
    for (const int64_t piece : {int64_t{1}, int64_t{7}, kScanChunk, int64_t{149}}) {
      Var h{Tensor::zeros({1, n, e}, DType::f32), {}};
      for (int64_t begin = 0; begin < t; begin += piece) {
        const int64_t end = std::min(t, begin + piece);
        expect_near(problem.run(ctx, begin, end, Seqs::dense(1, end - begin), &h), whole.rows(begin, end), 0,
                    text("pieces of ", piece));
      }
      expect_near(h.value, whole_state.value, 0, "final state");
    }
  }
}

// The same numbers from (10) as a sequence, from the associative operator combined in a tree, and from the sum written
// out: the three forms README.md derives.
TEST(SelectiveScan, SequentialParallelAndWrittenOutFormsAreEqual) {
  const int64_t t = 37;
  const Tensor delta = random_tensor("delta", {t}, DType::f64, 0, 1), input = random_tensor("input", {t}, DType::f64);
  struct Pair {
    double a, b;  // h -> a h + b
  };
  const auto then = [](Pair first, Pair second) { return Pair{second.a * first.a, second.a * first.b + second.b}; };
  std::vector<Pair> steps;
  for (int64_t i = 0; i < t; ++i) steps.push_back({std::exp(-delta.data<double>()[i]), input.data<double>()[i]});
  std::vector<Pair> scanned = steps;
  for (size_t reach = 1; reach < scanned.size(); reach *= 2)  // Hillis-Steele: log2(t) rounds
    for (size_t i = scanned.size(); i-- > reach;) scanned[i] = then(scanned[i - reach], scanned[i]);
  double h = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    h = steps[i].a * h + steps[i].b;
    double sum = 0, decay = 1;
    for (size_t j = i + 1; j-- > 0; decay *= steps[j].a) sum += decay * steps[j].b;
    EXPECT_NEAR(scanned[i].b, h, 1e-14);
    EXPECT_NEAR(sum, h, 1e-14);
  }
}

TEST(SelectiveScan, SameBitsForAnyNumberOfThreads) {
  const Problem problem(90, 200, 16, DType::f32);
  std::vector<Tensor> first;
  for (const int count : {1, 2, 3}) {
    Threads threads(count);
    Tape tape;
    const Ctx ctx{Device::cpu(), &threads, &tape};
    std::vector<Var> in;
    for (const Tensor* one :
         {&problem.x, &problem.dt, &problem.A_log, &problem.B, &problem.C, &problem.D, &problem.bias, &problem.z})
      in.push_back(tape.variable(*one));
    const Var y =
        selective_scan(ctx, {in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7]}, Seqs::dense(2, 45), nullptr);
    tape.backward({{y, random_tensor("dy", y.value.shape(), DType::f32)}});
    std::vector<Tensor> found = {y.value};
    for (const Var& var : in) found.push_back(var.grad->value);
    if (first.empty()) first = found;
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_EQ(0, std::memcmp(found[i].raw(), first[i].raw(), static_cast<size_t>(found[i].bytes())))
          << "tensor " << i << ", " << count << " threads";
  }
}

TEST(SelectiveScan, RatesKeptFromBeforeGiveTheSameBits) {
  Threads threads(2);
  const Ctx ctx{.device = Device::cpu(), .threads = &threads};
  for (const auto& [t, e, n] : {std::tuple<int64_t, int64_t, int64_t>{1, 131, 16}, {5, 64, 3}, {3, 7, 256}}) {
    const auto input = [](const char* name, const Shape& shape) {
      const Tensor tensor = Tensor::empty(shape, DType::f32);
      const Rng rng(3, name);
      for (int64_t i = 0; i < tensor.count(); ++i)
        tensor.data<float>()[i] = static_cast<float>(rng.normal(static_cast<uint64_t>(i)));
      return Var{tensor, {}};
    };
    ScanIn in{.x = input("x", {t, e}),
              .dt = input("dt", {t, e}),
              .A_log = input("A_log", {e, n}),
              .B = input("B", {t, n}),
              .C = input("C", {t, n})};
    // One sequence, then each token a sequence of its own, as in decoding.
    for (const Seqs& seqs : {Seqs::dense(1, t), Seqs::dense(t, 1)}) {
      const auto run = [&](const Tensor& rates) {
        in.rates = rates;
        Var h{input("h", {t, n, e}).value.clone(), {}};
        const Tensor y = selective_scan(ctx, in, seqs, &h).value;
        return std::pair{y, h.value};
      };
      const auto without = run({}), with = run(scan_rates(ctx, in.A_log.value));
      for (const auto& [a, b] : {std::pair{without.first, with.first}, {without.second, with.second}})
        EXPECT_EQ(std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())), 0) << "e " << e << " n " << n;
    }
    in.rates = in.rates.columns(0, 1);
    EXPECT_THROW(selective_scan(ctx, in, Seqs::dense(1, t), nullptr), Error);
  }
}

// Decoding: one token for each of many sequences, with one to four sequences a warp.
TEST(SelectiveScanCuda, AStepOfManySequencesAgreesWithRef) {
  const Device gpu = test_devices().front().first;
  if (skipped_for_want_of_gpu() || !gpu.is_cuda()) return;
  constexpr int64_t n = 16;
  struct Size {
    int64_t sequences, e, r;  // r: 0, or dt comes as factors
  };
  for (const auto& [sequences, e, r] : {Size{1, 20, 0},
                                        {1, 36, 48},
                                        {3, 132, 0},
                                        {5, 100, 24},
                                        {33, 2048, 0},
                                        {40, 2044, 160},
                                        {66, 3076, 0},
                                        {69, 3076, 72},
                                        {7, 64, 168},  // factors that are multiplied before
                                        {7, 64, 13}})
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      std::vector<int64_t> slots;  // any order, with gaps; 17 divides none of the sizes
      for (int64_t s = 0; s < sequences; ++s) slots.push_back((s * 17 + 3) % sequences * 2 + 1);
      const Seqs seqs = Seqs::ragged(std::vector<int64_t>(static_cast<size_t>(sequences), 1), slots);
      const auto input = [&](const char* name, const Shape& shape, DType stored, double low, double high) {
        return random_tensor(name, shape, DType::f32, low, high).to(stored);
      };
      const Tensor x = input("x", {sequences, e}, dtype, -1, 1),
                   dt = input("dt", {sequences, r > 0 ? r + 2 * n : e}, dtype, -3, 1),
                   dt_weight = input("dt_weight", {e, std::max<int64_t>(r, 1)}, dtype, -0.1, 0.1),
                   BC = input("B, C", {sequences, 2 * n}, dtype, -1, 1), z = input("z", {sequences, e}, dtype, -2, 2),
                   A_log = input("A_log", {e, n}, DType::f32, -1, 1.5), D = input("D", {e}, DType::f32, -1, 1),
                   bias = input("bias", {e}, DType::f32, -1, 1),
                   h = input("h", {2 * sequences + 1, n, e}, DType::f32, -1, 1);
      const auto run = [&](const Device& device, DType activations, DType parameters) {
        const auto there = [&](const Tensor& tensor, DType stored) { return Var{tensor.to(stored).on(device), {}}; };
        const Ctx ctx{device, &test_threads()};
        const Var rates_of = there(A_log, parameters), wide = there(BC, activations);
        ScanIn in{.x = there(x, activations),
                  .dt = there(dt, activations),
                  .A_log = rates_of,
                  .B = {wide.value.columns(0, n), {}},
                  .C = {wide.value.columns(n, 2 * n), {}},
                  .D = there(D, parameters),
                  .dt_bias = there(bias, parameters),
                  .z = there(z, activations),
                  .rates = scan_rates(ctx, rates_of.value)};
        if (r > 0) {
          in.dt = {in.dt.value.columns(0, r), {}};
          in.dt_weight = there(dt_weight, activations);
        }
        Var state{h.to(parameters).on(device).clone(), {}};
        const Tensor y = selective_scan(ctx, in, seqs, &state).value;
        return std::pair{y.on(Device::cpu()).to(DType::f32), state.value.on(Device::cpu()).to(DType::f32)};
      };
      const auto found = run(gpu, dtype, DType::f32), expected = run(Device::ref(), DType::f64, DType::f64);
      const std::string what = text(sequences, " sequences, e ", e, ", r ", r, ", ", name_of(dtype));
      // dt is rounded where it is multiplied before.
      const double near = std::max(tolerance(dtype, 4 * n), tolerance(DType::f32, 4 * n));
      expect_near(found.first, expected.first, near, what);
      expect_near(found.second, expected.second, r > 0 ? near : tolerance(DType::f32, 4 * n), what + ", states");
    }
}

TEST(SelectiveScan, NotANumberStaysInItsChannelAndAfterItsToken) {
  // In the step size, and in A, where the exponential alone must carry it: h is NaN from the second token on at the
  // latest (the first multiplies a state of zero). Both signs of NaN: hardware treats them differently.
  for (const float nan : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
    for (const Device device : {Device::ref(), Device::cpu()}) {
      const Problem problem(5, 20, 16, DType::f32);
      problem.A_log.matrix<float>()[3][7] = nan;
      const auto y = problem.run({device, &test_threads()}, 0, 5, Seqs::dense(1, 5), nullptr);
      for (int64_t t = 1; t < 5; ++t)
        for (int64_t c = 0; c < 20; ++c) EXPECT_EQ(std::isnan(y.matrix<float>()[t][c]), c == 3) << t << ", " << c;
    }
  }
  const Problem problem(40, 20, 16, DType::f32);
  problem.dt.matrix<float>()[10][3] = std::numeric_limits<float>::quiet_NaN();
  for (const Device device : {Device::ref(), Device::cpu()}) {
    const auto y = problem.run({device, &test_threads()}, 0, 40, Seqs::dense(1, 40), nullptr);
    for (int64_t t = 0; t < 40; ++t)
      for (int64_t c = 0; c < 20; ++c)
        EXPECT_EQ(std::isnan(y.matrix<float>()[t][c]), c == 3 && t >= 10) << t << ", " << c;
  }
}

TEST(SelectiveScan, LargeStepsForgetAndSmallStepsKeep) {
  // delta A from -1e-6 (a state that lives for a million tokens) to -1e5 (decay underflows): f32 against f64.
  const int64_t t = 12, e = 9, n = 4;
  const Problem wide(t, e, n, DType::f32);
  for (int64_t i = 0; i < wide.dt.count(); ++i) wide.dt.data<float>()[i] = -14.0f + 3.0f * static_cast<float>(i % 11);
  Problem exact = wide;
  for (Tensor* one : {&exact.x, &exact.dt, &exact.A_log, &exact.B, &exact.C, &exact.D, &exact.bias, &exact.z})
    *one = one->to(DType::f64);
  Var h32{random_tensor("h", {1, n, e}, DType::f32), {}}, h64{h32.value.to(DType::f64), {}};
  const Tensor y32 = wide.run({Device::cpu(), &test_threads()}, 0, t, Seqs::dense(1, t), &h32);
  const Tensor y64 = exact.run({Device::ref(), &test_threads()}, 0, t, Seqs::dense(1, t), &h64);
  expect_near(y32, y64, tolerance(DType::f32, n * t), "y");
  expect_near(h32.value, h64.value, tolerance(DType::f32, n * t), "h");
}

TEST(SelectiveScan, WrongShapesAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  Problem problem(4, 3, 2, DType::f32);
  EXPECT_THROW(problem.run(ctx, 0, 4, Seqs::dense(1, 3), nullptr), Error);
  Var h{Tensor::zeros({1, 3, 2}, DType::f32), {}};
  EXPECT_THROW(problem.run(ctx, 0, 4, Seqs::dense(1, 4), &h), Error);
  problem.B = Tensor::zeros({4, 5}, DType::f32);
  EXPECT_THROW(problem.run(ctx, 0, 4, Seqs::dense(1, 4), nullptr), Error);
}

}  // namespace
}  // namespace ssm::test
