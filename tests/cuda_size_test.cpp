// Ops of a GPU at sizes where 32-bit indices, grid limits and long sums would show: more than 2^31 elements, one
// sequence of 2^21 tokens, both equal to pieces of them computed alone; and 61,000 to 70,000 tokens in one call against
// f64. What is too large to compare whole is compared in every 61st row.
#include <gtest/gtest.h>

#include "ops/conv1d/conv1d.h"
#include "ops/selective_scan/selective_scan.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

const Device kGpu = Device::cuda();
constexpr int64_t kStates = 16;

// Marks the test as skipped where there is no GPU, or none with so much memory.
bool skipped(int64_t gigabytes) {
  std::string why = "this program was built without CUDA";
  if constexpr (kHasCuda) {
    why = cuda::device_count() > 0 ? "" : cuda::why_no_device();
    if (why.empty() && cuda::memory_bytes(kGpu) < gigabytes * 1'000'000'000)
      why = text("needs a GPU with ", gigabytes, " GB");
  }
  if (why.empty()) return false;
  [&] { GTEST_SKIP() << why; }();
  return true;
}

// A million random numbers over and over; rows differ, since their lengths do not divide it.
Tensor repeated(const std::string& name, const Shape& shape, double low, double high, DType dtype = DType::bf16) {
  const int64_t count = shape.count(), drawn = std::min<int64_t>(count, (1 << 20) + 7);
  const Tensor all = Tensor::empty({count}, dtype, kGpu);
  all.rows(0, drawn).copy_from(random_tensor(name, {drawn}, DType::f32, low, high));
  for (int64_t have = drawn; have < count; have *= 2) {
    const int64_t more = std::min(have, count - have);
    all.rows(have, have + more).copy_from(all.rows(0, more));
  }
  return all.reshape(shape);
}

// Every 61st row of (t, channels), on the host: a prime, so that all places in a tile are met.
Tensor some_rows(const Tensor& all) {
  constexpr int64_t kStep = 61;
  const Shape shape = {(all.size(0) + kStep - 1) / kStep, all.size(1)}, strides = {kStep * all.stride(0), 1};
  return Tensor::borrow(all.raw(), shape, all.dtype(), std::make_shared<Tensor>(all), &strides, kGpu).on(Device::cpu());
}

Tensor exact(const Tensor& tensor) { return tensor.on(Device::cpu()).to(DType::f64).clone(); }

struct ScanCase {
  Tensor x, dt, A_log, B, C, D, dt_bias, z, dout;

  ScanCase(int64_t t, int64_t e)
      : x(repeated("x", {t, e}, -1, 1)),
        dt(repeated("dt", {t, e}, -5, -2)),
        A_log(repeated("A_log", {e, kStates}, 0, 2.7, DType::f32)),
        B(repeated("B", {t, kStates}, -1, 1)),
        C(repeated("C", {t, kStates}, -1, 1)),
        D(repeated("D", {e}, -1, 1, DType::f32)),
        dt_bias(repeated("dt_bias", {e}, -1, 1, DType::f32)),
        z(repeated("z", {t, e}, -2, 2)),
        dout(repeated("dout", {t, e}, -1, 1)) {}

  struct Result {
    Tensor out, dx, ddt, dB, dC, dz;
  };
  // Forward and backward of some rows, which are whole sequences.
  Result run(int64_t begin, int64_t end, const Seqs& seqs) const {
    Tape tape;
    const Ctx ctx{kGpu, &test_threads(), &tape};
    const auto rows = [&](const Tensor& all) { return tape.variable(all.rows(begin, end)); };
    const ScanIn in{.x = rows(x),
                    .dt = rows(dt),
                    .A_log = {A_log, {}},
                    .B = rows(B),
                    .C = rows(C),
                    .D = {D, {}},
                    .dt_bias = {dt_bias, {}},
                    .z = rows(z),
                    .rates = {}};
    const Var out = selective_scan(ctx, in, seqs, nullptr);
    tape.backward({{out, dout.rows(begin, end)}});
    return {out.value, in.x.grad->value, in.dt.grad->value, in.B.grad->value, in.C.grad->value, in.z.grad->value};
  }
  // Forward alone, from and to a state.
  Tensor forward(int64_t begin, int64_t end, Var& state) const {
    const Ctx ctx{kGpu, &test_threads()};
    const auto rows = [&](const Tensor& all) { return Var{all.rows(begin, end), {}}; };
    const ScanIn in{.x = rows(x),
                    .dt = rows(dt),
                    .A_log = {A_log, {}},
                    .B = rows(B),
                    .C = rows(C),
                    .D = {D, {}},
                    .dt_bias = {dt_bias, {}},
                    .z = rows(z),
                    .rates = {}};
    return selective_scan(ctx, in, Seqs::dense(1, end - begin), &state).value;
  }
};

TEST(CudaSize, ScanOfMoreThan2To31ElementsIsItsSequences) {
  constexpr int64_t kSequences = 16, kLength = 65536, kWidth = 2304, kTogether = 4;
  static_assert(kSequences * kLength * kWidth > int64_t{1} << 31);
  if (skipped(90)) return;
  const ScanCase all(kSequences * kLength, kWidth);
  const double limit = tolerance(DType::bf16, 1);
  const ScanCase::Result whole = all.run(0, kSequences * kLength, Seqs::dense(kSequences, kLength));
  for (int64_t s = 0; s < kSequences; s += kTogether) {
    SCOPED_TRACE(text("sequences from ", s));
    const int64_t begin = s * kLength, end = begin + kTogether * kLength;
    const ScanCase::Result part = all.run(begin, end, Seqs::dense(kTogether, kLength));
    const auto compare = [&](const Tensor& found, const Tensor& expected, const char* what) {
      expect_near(some_rows(found.rows(begin, end)), some_rows(expected), limit, what);
    };
    compare(whole.out, part.out, "out");
    compare(whole.dx, part.dx, "dx");
    compare(whole.ddt, part.ddt, "ddt");
    compare(whole.dB, part.dB, "dB");
    compare(whole.dC, part.dC, "dC");
    compare(whole.dz, part.dz, "dz");
  }
}

TEST(CudaSize, ScanOf2To21TokensIsItsPieces) {
  constexpr int64_t kLength = 1 << 21, kWidth = 512, kPieces = 8;
  if (skipped(30)) return;
  const ScanCase all(kLength, kWidth);
  Var state{Tensor::zeros({1, kStates, kWidth}, DType::f32, kGpu), {}};
  const Tensor whole = all.forward(0, kLength, state);
  Var carried{Tensor::zeros({1, kStates, kWidth}, DType::f32, kGpu), {}};
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    SCOPED_TRACE(text("piece ", piece));
    const int64_t begin = piece * kLength / kPieces, end = (piece + 1) * kLength / kPieces;
    const Tensor part = all.forward(begin, end, carried);
    expect_near(some_rows(whole.rows(begin, end)), some_rows(part), tolerance(DType::bf16, 1), "out");
  }
  expect_near(state.value, carried.value, tolerance(DType::f32, 64), "the last state");
}

// Channels do not meet but in the gradients of B and C; all but a few have no gradient here, so that those few say all.
TEST(CudaSize, ScanOfSome60000TokensIsRight) {
  if (skipped(4)) return;
  constexpr int64_t kWidth = 96, kBegin = 62, kEnd = 66;  // on both sides of 64
  for (const int64_t length : {61000, 65535, 65536, 65537, 70000}) {
    SCOPED_TRACE(text(length, " tokens"));
    const ScanCase all(length, kWidth);
    const auto columns = [&](const Tensor& of) { return of.columns(kBegin, kEnd); };
    const Tensor kept = exact(columns(all.dout));
    all.dout.fill_zero();
    columns(all.dout).copy_from(kept.to(DType::f32));
    const Seqs seqs = Seqs::dense(1, length);
    const ScanCase::Result found = all.run(0, length, seqs);

    Tape tape;
    const Ctx ctx{Device::ref(), &test_threads(), &tape};
    const auto some = [&](const Tensor& of) { return tape.variable(exact(columns(of))); };
    const auto parameter = [&](const Tensor& of) { return Var{exact(of.rows(kBegin, kEnd)), {}}; };
    const ScanIn in{.x = some(all.x),
                    .dt = some(all.dt),
                    .A_log = parameter(all.A_log),
                    .B = tape.variable(exact(all.B)),
                    .C = tape.variable(exact(all.C)),
                    .D = parameter(all.D),
                    .dt_bias = parameter(all.dt_bias),
                    .z = some(all.z),
                    .rates = {}};
    const Var out = selective_scan(ctx, in, seqs, nullptr);
    tape.backward({{out, kept}});
    const double limit = tolerance(DType::bf16, 1);
    expect_near(columns(found.out).clone(), out.value, limit, "out");
    // The backward rounds the states of a tile to bf16, the terms of these sums, and so few channels average little.
    const double gradient_limit = 3 * limit;
    expect_near(columns(found.dx).clone(), in.x.grad->value, limit, "dx");
    expect_near(columns(found.ddt).clone(), in.dt.grad->value, limit, "ddt");
    expect_near(columns(found.dz).clone(), in.z.grad->value, limit, "dz");
    expect_near(found.dB, in.B.grad->value, gradient_limit, "dB");
    expect_near(found.dC, in.C.grad->value, gradient_limit, "dC");
  }
}

struct ConvCase {
  Tensor x, weight, bias, dy;

  ConvCase(int64_t t, int64_t e)
      : x(repeated("x", {t, e}, -1, 1)),
        weight(repeated("weight", {e, 1, 4}, -1, 1, DType::f32)),
        bias(repeated("bias", {e}, -1, 1, DType::f32)),
        dy(repeated("dy", {t, e}, -1, 1)) {}

  // y and dx.
  std::pair<Tensor, Tensor> run(int64_t begin, int64_t end, const Seqs& seqs) const {
    Tape tape;
    const Ctx ctx{kGpu, &test_threads(), &tape};
    const Var rows = tape.variable(x.rows(begin, end));
    const Var y = conv1d(ctx, rows, {weight, {}}, {bias, {}}, Activation::silu, seqs, nullptr);
    tape.backward({{y, dy.rows(begin, end)}});
    return {y.value, rows.grad->value};
  }
  Tensor forward(int64_t begin, int64_t end, Var& state) const {
    const Ctx ctx{kGpu, &test_threads()};
    return conv1d(ctx, {x.rows(begin, end), {}}, {weight, {}}, {bias, {}}, Activation::silu,
                  Seqs::dense(1, end - begin), &state)
        .value;
  }
};

TEST(CudaSize, ConvOfMoreThan2To31ElementsIsItsSequences) {
  constexpr int64_t kSequences = 16, kLength = 65536, kWidth = 2304, kTogether = 4;
  if (skipped(60)) return;
  const ConvCase all(kSequences * kLength, kWidth);
  const auto [y, dx] = all.run(0, kSequences * kLength, Seqs::dense(kSequences, kLength));
  for (int64_t s = 0; s < kSequences; s += kTogether) {
    SCOPED_TRACE(text("sequences from ", s));
    const int64_t begin = s * kLength, end = begin + kTogether * kLength;
    const auto [part_y, part_dx] = all.run(begin, end, Seqs::dense(kTogether, kLength));
    expect_near(some_rows(y.rows(begin, end)), some_rows(part_y), 0, "y");
    expect_near(some_rows(dx.rows(begin, end)), some_rows(part_dx), 0, "dx");
  }
}

TEST(CudaSize, ConvOf2To21TokensIsItsPieces) {
  constexpr int64_t kLength = 1 << 21, kWidth = 1152, kPieces = 8;
  static_assert(kLength * kWidth > int64_t{1} << 31);
  if (skipped(30)) return;
  const ConvCase all(kLength, kWidth);
  Var state{Tensor::zeros({1, 3, kWidth}, DType::f32, kGpu), {}};
  const Tensor whole = all.forward(0, kLength, state);
  Var carried{Tensor::zeros({1, 3, kWidth}, DType::f32, kGpu), {}};
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    SCOPED_TRACE(text("piece ", piece));
    const int64_t begin = piece * kLength / kPieces, end = (piece + 1) * kLength / kPieces;
    expect_near(some_rows(whole.rows(begin, end)), some_rows(all.forward(begin, end, carried)), 0, "y");
  }
  expect_near(state.value, carried.value, 0, "the last inputs");
}

}  // namespace
}  // namespace ssm::test
