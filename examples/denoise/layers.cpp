// The layers of the enhancer, out of the library's ops. Equations: README.md.
#include "layers.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <utility>

#include "ops/conv1d/conv1d.h"
#include "ops/diag_scan/diag_scan.h"
#include "ops/fft_conv/fft_conv.h"
#include "ops/linear/linear.h"
#include "ops/ssm_kernel/ssm_kernel.h"

namespace denoise {
namespace {

using ssm::DType;
using ssm::Seqs;
using ssm::Shape;
using ssm::Var;

// Modes whose kernels are in memory at a time, so that a recording takes 128 bytes a step for them and not 1 KiB.
constexpr int64_t kModesAtOnce = 32;
constexpr double kNormEps = 1e-5;

Var var(const Tensor& tensor) { return {.value = tensor, .grad = {}, .again = {}}; }

Tensor product(const Ctx& ctx, const Tensor& x, const Tensor& weight) {
  return ssm::linear(ctx, var(x), var(weight)).value;
}

Tensor filled(const Shape& shape, float value) {
  const Tensor tensor = Tensor::zeros(shape, DType::f32);
  std::fill_n(tensor.data<float>(), tensor.count(), value);
  return tensor;
}

double softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const float *w = weight.data<float>(), *b = bias.data<float>();
  const auto channels = static_cast<double>(x.size(1));
  for (int64_t t = 0; t < x.size(0); ++t) {
    float* row = x.matrix<float>()[t];
    double sum = 0, squares = 0;
    for (int64_t c = 0; c < x.size(1); ++c) sum += static_cast<double>(row[c]);
    const double mean = sum / channels;
    for (int64_t c = 0; c < x.size(1); ++c) squares += (row[c] - mean) * (row[c] - mean);
    const double scale = 1 / std::sqrt(squares / channels + kNormEps);
    for (int64_t c = 0; c < x.size(1); ++c) row[c] = static_cast<float>((row[c] - mean) * scale) * w[c] + b[c];
  }
}

void silu(const Tensor& x) {
  for (float& value : x.span<float>()) value /= 1 + std::exp(-value);
}

}  // namespace

Tensor load(const Network& weights, const std::string& name, const std::vector<int64_t>& shape) {
  const Tensor tensor = weights.tensor(name).clone();
  bool fits = tensor.rank() == static_cast<int>(shape.size());
  for (int i = 0; fits && i < tensor.rank(); ++i) {
    const int64_t expected = shape[static_cast<size_t>(i)];
    fits = tensor.size(i) > 0 && (expected < 0 || tensor.size(i) == expected);
  }
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  ssm::require(fits, "weights: ", name, " is ", tensor.shape(), ", expected (", wanted, ")");
  for (const float value : tensor.span<float>())
    ssm::require(std::isfinite(value), "weights: ", name, " has an element that is no finite number");
  return tensor;
}

void Rows::push(const Tensor& x) {
  if (!x) return;
  DCHECK(x.contiguous() && x.size(1) == columns_);
  values_.erase(values_.begin(), values_.begin() + static_cast<std::ptrdiff_t>(begin_));
  begin_ = 0;
  values_.insert(values_.end(), x.data<float>(), x.data<float>() + x.count());
}

Tensor Rows::take(int64_t rows) {
  DCHECK(rows <= size());
  if (rows == 0) return {};
  const auto count = static_cast<size_t>(rows * columns_);
  const Tensor taken = Tensor::of(std::span<const float>(values_).subspan(begin_, count), {rows, columns_});
  begin_ += count;
  return taken;
}

DiagonalSsm::DiagonalSsm(const Network& weights, const std::string& name, int64_t channels) {
  const Tensor log_dt = load(weights, name + ".log_dt", {-1});
  const int64_t n = log_dt.size(0);
  const Tensor A = load(weights, name + ".A", {n, 2});
  B_ = load(weights, name + ".B", {n, channels});
  C_ = load(weights, name + ".C", {channels, n});

  const Tensor z = Tensor::empty({2, 1, n}, DType::f32), b = filled({2, 1, n}, 0), c = filled({2, 1, n}, 0);
  for (int64_t k = 0; k < n; ++k) {
    const double dt = std::exp(static_cast<double>(log_dt.data<float>()[k]));
    const float* a = A.data<float>() + 2 * k;
    const std::complex<double> exponent(-dt * softplus(static_cast<double>(a[0])), dt * static_cast<double>(a[1]));
    // e^(p + iq) - 1 = (e^p - 1) cos q - 2 sin^2(q / 2) + i e^p sin q keeps the digits of a slow mode.
    const double p = exponent.real(), q = exponent.imag(), half = std::sin(q / 2);
    z.data<float>()[k] = static_cast<float>(std::expm1(p) * std::cos(q) - 2 * half * half);
    z.data<float>()[n + k] = static_cast<float>(std::exp(p) * std::sin(q));
    ssm::require(std::isfinite(z.data<float>()[k]) && std::isfinite(z.data<float>()[n + k]), "weights: ", name,
                 ": mode ", k, " has log_dt ", log_dt.data<float>()[k], ", too large for a step");
    b.data<float>()[k] = c.data<float>()[k] = 1;
    for (int64_t i = 0; i < channels; ++i) B_.matrix<float>()[k][i] *= static_cast<float>(dt);
  }
  system_ = {.z = var(z), .b = var(b), .c = var(c), .f = {}, .g = {}};
}

Tensor DiagonalSsm::whole(const Ctx& ctx, const Tensor& x) const {
  const Seqs seqs = Seqs::dense(1, x.size(0));
  const int64_t channels = B_.size(1);
  // One channel: the modes' kernels add up to one, (3).
  const Tensor y = Tensor::zeros({x.size(0), channels}, DType::f32);
  for (int64_t first = 0; first < modes(); first += kModesAtOnce) {
    const int64_t end = std::min(first + kModesAtOnce, modes());
    const auto part = [&](const Var& of) { return var(of.value.columns(first, end).clone()); };
    const ssm::StateSpace system = {.z = part(system_.z), .b = part(system_.b), .c = part(system_.c), .f = {}, .g = {}};
    const Var kernel = ssm::ssm_kernel(ctx, system, x.size(0));  // (t, modes of this part)
    const Tensor C = C_.columns(first, end).clone(), B = B_.rows(first, end);
    if (channels == 1) {
      for (int64_t k = 0; k < C.count(); ++k) C.data<float>()[k] *= B.data<float>()[k];
      y.add(product(ctx, kernel.value, C));
    } else {
      y.add(product(ctx, ssm::fft_conv(ctx, var(product(ctx, x, B)), kernel, {}, seqs).value, C));
    }
  }
  return channels == 1 ? ssm::fft_conv(ctx, var(x), var(y), {}, seqs).value : y;
}

Tensor DiagonalSsm::piece(const Ctx& ctx, const Tensor& x, Tensor& state) const {
  Var carried = var(state);
  const Var v = ssm::diag_scan(ctx, system_, var(product(ctx, x, B_)), {}, Seqs::dense(1, x.size(0)), &carried);
  state = carried.value;
  return product(ctx, v.value, C_);
}

Tensor DiagonalSsm::zero_state() const { return Tensor::zeros({1, 2, 1, modes()}, DType::f32); }

Block::Block(const Network& weights, const std::string& name, int64_t channels, End end)
    : channels_(channels), ssm_(weights, name + (channels > 1 ? ".1" : ".0"), channels), end_(end) {
  if (channels == 1) return;
  conv_ = load(weights, name + ".0.weight", {channels, 1, 3});
  conv_bias_ = load(weights, name + ".0.bias", {channels});
  norm_ = load(weights, name + ".2.layer_norm.weight", {channels});
  norm_bias_ = load(weights, name + ".2.layer_norm.bias", {channels});
}

Block::State Block::start() const {
  State state{.conv = {}, .ssm = ssm_.zero_state()};
  if (conv_) state.conv = Tensor::zeros({1, 2, channels_}, DType::f32);
  return state;
}

// The causal op, read one step late: its row p is the row p - 1 of a convolution that looks one step ahead, and row 0,
// that of a step before the first, is dropped.
Tensor Block::convolve(const Ctx& ctx, const Tensor& x, State& state, bool last) const {
  Tensor padded = x;
  if (last) {
    padded = Tensor::zeros({rows_of(x) + 1, channels_}, DType::f32);
    if (x) padded.rows(0, x.size(0)).copy_from(x);
  }
  if (!padded) return {};
  Var carried = var(state.conv);
  const Tensor y = ssm::conv1d(ctx, var(padded), var(conv_), var(conv_bias_), ssm::Activation::none,
                               Seqs::dense(1, padded.size(0)), &carried)
                       .value;
  state.conv = carried.value;
  if (std::exchange(state.started, true)) return y;
  return y.size(0) > 1 ? y.rows(1, y.size(0)) : Tensor();
}

Tensor Block::forward(const Ctx& ctx, const Tensor& x, State& state, Extent extent, bool last) const {
  const Tensor u = conv_ ? convolve(ctx, x, state, last) : x;
  if (!u) return {};
  const Tensor y = extent == Extent::whole ? ssm_.whole(ctx, u) : ssm_.piece(ctx, u, state.ssm);
  if (norm_) layer_norm(y, norm_, norm_bias_);
  if (end_ == End::silu) silu(y);
  return y;
}

Merge::Merge(const Network& weights, const std::string& name, int64_t channels) {
  const Tensor published = load(weights, name, {channels, -1, -1});  // (c, d, r)
  const int64_t d = published.size(1);
  rate_ = published.size(2);
  weight_ = Tensor::empty({d, rate_ * channels}, DType::f32);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < rate_; ++j)
        weight_.matrix<float>()[i][j * channels + c] = published.data<float>()[(c * d + i) * rate_ + j];
}

Tensor Merge::forward(const Ctx& ctx, const Tensor& x, Rows& waiting) const {
  waiting.push(x);
  const int64_t steps = waiting.size() / rate_;
  if (steps == 0) return {};
  return product(ctx, waiting.take(steps * rate_).reshape({steps, weight_.size(1)}), weight_);
}

Expand::Expand(const Network& weights, const std::string& name, int64_t channels, int64_t channels_out, int64_t rate)
    : rate_(rate) {
  const Tensor published = load(weights, name, {channels, channels_out, rate});  // (c, d, r)
  weight_ = Tensor::empty({rate * channels_out, channels}, DType::f32);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < channels_out; ++i)
      for (int64_t j = 0; j < rate; ++j)
        weight_.matrix<float>()[j * channels_out + i][c] = published.data<float>()[(c * channels_out + i) * rate + j];
}

Tensor Expand::forward(const Ctx& ctx, const Tensor& x) const {
  if (!x) return {};
  return product(ctx, x, weight_).reshape({x.size(0) * rate_, weight_.size(0) / rate_});
}

}  // namespace denoise
