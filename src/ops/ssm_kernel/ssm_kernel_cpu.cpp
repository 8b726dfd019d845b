// ssm_kernel on threads. A diagonal system is a Vandermonde product; one with a rank-one part is made on a circle of
// nodes, a channel at a time: Cauchy products, Woodbury's formula, and a Fourier transform back. Equations: README.md.
#include <kissfft/kiss_fft.h>

#include <algorithm>
#include <cmath>
#include <kissfft/kissfft.hh>

#include "ops/ssm_kernel/cauchy.h"
#include "ops/ssm_kernel/vandermonde.h"

namespace ssm::cpu {
namespace {

using Complex = std::complex<double>;

// One channel of a tensor of f32 or f64.
double element(const Tensor& tensor, int64_t i) {
  return tensor.dtype() == DType::f64 ? tensor.data<double>()[i] : static_cast<double>(tensor.data<float>()[i]);
}
void set_element(const Tensor& tensor, int64_t i, double value) {
  if (tensor.dtype() == DType::f64)
    tensor.data<double>()[i] = value;
  else
    tensor.data<float>()[i] = static_cast<float>(value);
}
ComplexArray channel_of(const Tensor& tensor, int64_t e) {  // of (2, n, e)
  const int64_t n = tensor.size(1), width = tensor.size(2);
  ComplexArray modes(n);
  for (int64_t k = 0; k < n; ++k) modes.put(k, {element(tensor, k * width + e), element(tensor, (n + k) * width + e)});
  return modes;
}
void set_mode(const Tensor& tensor, int64_t k, int64_t e, Complex value) {
  const int64_t n = tensor.size(1), width = tensor.size(2);
  set_element(tensor, k * width + e, value.real());
  set_element(tensor, (n + k) * width + e, value.imag());
}

// The nodes rho e^(-2 pi i j / m), and the transforms between them and the taps: (7) and (8).
class Circle {
 public:
  Circle(int64_t taps, DType dtype) : taps_(taps), zeta_(0), forward_(1, false), inverse_(1, true) {
    // As many more nodes than taps as the precision of the result asks for: README.md.
    const int64_t least = dtype == DType::f64 ? 4 * taps : taps + (taps + 1) / 2;
    nodes_ = kNodeMultiple * kiss_fft_next_fast_size(static_cast<int>((least + kNodeMultiple - 1) / kNodeMultiple));
    const double m = static_cast<double>(nodes_), l = static_cast<double>(taps_);
    log_radius_ = -16 * std::log(10.0) / (m + l);
    zeta_ = ComplexArray(nodes_);
    for (int64_t j = 0; j < nodes_; ++j)
      zeta_.put(j, std::polar(std::exp(log_radius_), -2 * M_PI * static_cast<double>(j) / m));
    forward_.assign(static_cast<size_t>(nodes_), false);
    inverse_.assign(static_cast<size_t>(nodes_), true);
  }
  int64_t nodes() const { return nodes_; }
  int64_t mirror(int64_t j) const { return j == 0 ? 0 : nodes_ - j; }  // where the conjugate node is
  const ComplexArray& zeta() const { return zeta_; }

  // The taps whose transform this is.
  void to_taps(const std::vector<Complex>& transform, const Tensor& K, int64_t e) const {
    std::vector<Complex> line(transform.size());
    inverse_.transform(transform.data(), line.data());
    for (int64_t l = 0; l < taps_; ++l)
      set_element(K, l * K.size(1) + e, line[static_cast<size_t>(l)].real() * weight(l));
  }
  // From the gradient of the taps to that of the transform.
  std::vector<Complex> gradient(const Tensor& dK, int64_t e) const {
    std::vector<Complex> line(static_cast<size_t>(nodes_)), result(line.size());
    for (int64_t l = 0; l < taps_; ++l) line[static_cast<size_t>(l)] = element(dK, l * dK.size(1) + e) * weight(l);
    forward_.transform(line.data(), result.data());
    return result;
  }

 private:
  double weight(int64_t l) const {
    return std::exp(-log_radius_ * static_cast<double>(l)) / static_cast<double>(nodes_);
  }
  int64_t taps_, nodes_;
  double log_radius_;
  ComplexArray zeta_;
  kissfft<double> forward_, inverse_;
};

// Channel e on the circle: (5) with what goes into it.
struct OnCircle {
  ComplexArray a, b, c, f, g;
  FourArrays v, r;

  OnCircle(const auto& args, int64_t e, const Circle& circle)
      : a(channel_of(args.z, e)),
        b(channel_of(args.b, e)),
        c(channel_of(args.c, e)),
        f(channel_of(args.f, e)),
        g(channel_of(args.g, e)),
        v(kPairs, ComplexArray(a.count())),
        r(kPairs, ComplexArray(circle.nodes())) {
    for (int64_t k = 0; k < a.count(); ++k) {
      a.put(k, 1.0 + a[k]);
      v[kCB].put(k, c[k] * b[k]);
      v[kCG].put(k, c[k] * g[k]);
      v[kFB].put(k, f[k] * b[k]);
      v[kFG].put(k, f[k] * g[k]);
    }
    cauchy_forward(a, v, circle.zeta(), r);
    for (ComplexArray& one : r)  // the modes' own sums become those over modes and conjugates
      for (int64_t j = 0; j <= circle.nodes() / 2; ++j) {
        const Complex both = 0.5 * (one[j] + std::conj(one[circle.mirror(j)]));
        one.put(j, both);
        one.put(circle.mirror(j), std::conj(both));
      }
  }
  Complex woodbury(Complex zeta, int64_t j) const { return 1.0 / (1.0 + zeta * r[kFG][j]); }
};

void cauchy_kernel_forward(const SsmKernelForward& args, Threads& threads) {
  const Circle circle(args.K.size(0), args.K.dtype());
  threads.parallel(args.z.size(2), [&](int64_t e, int) {
    const OnCircle channel(args, e, circle);
    std::vector<Complex> transform(static_cast<size_t>(circle.nodes()));
    for (int64_t j = 0; j < circle.nodes(); ++j) {  // (4)
      const Complex zeta = circle.zeta()[j];
      transform[static_cast<size_t>(j)] =
          channel.r[kCB][j] - zeta * channel.r[kCG][j] * channel.r[kFB][j] * channel.woodbury(zeta, j);
    }
    circle.to_taps(transform, args.K, e);
  });
}

void cauchy_kernel_backward(const SsmKernelBackward& args, Threads& threads) {
  const Circle circle(args.dK.size(0), args.dK.dtype());
  threads.parallel(args.z.size(2), [&](int64_t e, int) {
    const OnCircle channel(args, e, circle);
    const std::vector<Complex> dtransform = circle.gradient(args.dK, e);
    FourArrays dr(kPairs, ComplexArray(circle.nodes())), dv(kPairs, ComplexArray(channel.a.count()));
    for (int64_t j = 0; j < circle.nodes(); ++j) {  // of (4)
      const Complex zeta = circle.zeta()[j], W = channel.woodbury(zeta, j), cg = channel.r[kCG][j],
                    fb = channel.r[kFB][j], d = dtransform[static_cast<size_t>(j)];
      dr[kCB].put(j, d);
      dr[kCG].put(j, -std::conj(zeta * fb * W) * d);
      dr[kFB].put(j, -std::conj(zeta * cg * W) * d);
      dr[kFG].put(j, std::conj(zeta * zeta * cg * fb * W * W) * d);
    }
    ComplexArray da(channel.a.count());
    cauchy_backward(channel.a, channel.v, circle.zeta(), dr, dv, da);
    for (int64_t k = 0; k < channel.a.count(); ++k) {
      const Complex b = std::conj(channel.b[k]), c = std::conj(channel.c[k]), f = std::conj(channel.f[k]),
                    g = std::conj(channel.g[k]);
      set_mode(args.dz, k, e, da[k]);
      set_mode(args.dc, k, e, b * dv[kCB][k] + g * dv[kCG][k]);
      set_mode(args.db, k, e, c * dv[kCB][k] + f * dv[kFB][k]);
      set_mode(args.df, k, e, b * dv[kFB][k] + g * dv[kFG][k]);
      set_mode(args.dg, k, e, c * dv[kCG][k] + f * dv[kFG][k]);
    }
  });
}

}  // namespace

void ssm_kernel_forward(const SsmKernelForward& args, Threads& threads) {
  if (args.K.size(0) > 0) args.f ? cauchy_kernel_forward(args, threads) : vandermonde_forward(args, threads);
}

void ssm_kernel_backward(const SsmKernelBackward& args, Threads& threads) {
  if (args.dK.size(0) > 0) return args.f ? cauchy_kernel_backward(args, threads) : vandermonde_backward(args, threads);
  for (const Tensor& sum : {args.dz, args.db, args.dc, args.df, args.dg})
    if (sum) sum.fill_zero();
}

}  // namespace ssm::cpu
