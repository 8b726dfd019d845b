// One channel of discretize, forward and backward, for both of its versions: E is what tensors are kept in, T what is
// computed in. Equations: README.md. A gradient of a complex number v is dL/d(Re v) + i dL/d(Im v); through an analytic
// w(v) it goes as grad_v = conj(dw/dv) grad_w.
#pragma once

#include <cmath>
#include <complex>
#include <vector>

#include "ops/discretize/discretize.h"

namespace ssm::discretize_channel {

// What both passes read of channel e.
template <class E, class T>
struct Channel {
  using Complex = std::complex<T>;
  const E *inv_dt, *A_real, *A_imag, *B, *C, *P;
  int64_t parts, n, e, copies, channel, copy;
  bool zoh, exponential;

  Channel(const auto& args, int64_t of)
      : inv_dt(args.inv_dt.template data<E>()),
        A_real(args.A_real.template data<E>()),
        A_imag(args.A_imag.template data<E>()),
        B(args.B.template data<E>()),
        C(args.C.template data<E>()),
        P(args.P.template data<E>()),
        parts(A_imag ? 2 : 1),
        n(args.A_real.size(1)),
        e(args.inv_dt.size(0)),
        copies(args.A_real.size(0)),
        channel(of),
        copy(of % copies),
        zoh(args.method == Discretization::zoh),
        exponential(args.step == StepTransform::exp) {}

  T step() const {
    const T v = static_cast<T>(inv_dt[channel]);
    return exponential ? std::exp(v) : v > 20 ? v : std::log1p(std::exp(v));
  }
  T dstep() const {  // of inv_dt
    const T v = static_cast<T>(inv_dt[channel]);
    return exponential ? std::exp(v) : 1 / (1 + std::exp(-v));
  }
  Complex lambda(int64_t k) const {
    const int64_t i = copy * n + k;
    return {-std::exp(static_cast<T>(A_real[i])), A_imag ? -static_cast<T>(A_imag[i]) : T(0)};
  }
  Complex read(const E* from, int64_t row, int64_t k) const {  // of B, C and P
    const E* at = from + (row * n + k) * parts;
    return {static_cast<T>(at[0]), parts == 2 ? static_cast<T>(at[1]) : T(0)};
  }
  void add(const Complex& value, const Tensor& to, int64_t row, int64_t k) const {
    if (!to) return;
    E* at = to.data<E>() + (row * n + k) * parts;
    at[0] += static_cast<E>(value.real());
    if (parts == 2) at[1] += static_cast<E>(value.imag());
  }
  // Of the (parts, n, e) tensors.
  void put(const Complex& value, const Tensor& to, int64_t k) const {
    E* at = to.data<E>() + k * e + channel;
    at[0] = static_cast<E>(value.real());
    if (parts == 2) at[n * e] = static_cast<E>(value.imag());
  }
  Complex take(const Tensor& from, int64_t k) const {
    const E* at = from.data<E>() + k * e + channel;
    return {static_cast<T>(at[0]), parts == 2 ? static_cast<T>(at[n * e]) : T(0)};
  }
};

// z, q = z / lambda and their derivatives.
template <class T>
struct Mode {
  using Complex = std::complex<T>;
  Complex z, q, dz_dlambda, dz_dstep, dq_dlambda, dq_dstep;

  Mode(T step, Complex lambda, bool zoh) {
    if (zoh) {  // (3), left; e^v - 1 from parts that do not cancel
      const Complex v = step * lambda;
      const T half = std::sin(v.imag() / 2);
      z = {std::expm1(v.real()) * std::cos(v.imag()) - 2 * half * half, std::exp(v.real()) * std::sin(v.imag())};
      q = std::abs(v) > 0 ? z / lambda : Complex(step);
      dz_dlambda = step * (T(1) + z);
      dz_dstep = lambda * (T(1) + z);
      // (step (1 + z) - q) / lambda, whose terms cancel for small v: its series there
      dq_dlambda = std::abs(v) > T(0.01)
                       ? (step * (T(1) + z) - q) / lambda
                       : step * step * (T(1) / 2 + v * (T(1) / 3 + v * (T(1) / 8 + v * (T(1) / 30 + v / T(144)))));
      dq_dstep = T(1) + z;
    } else {  // (3), right
      const Complex inverse = T(1) / (T(1) - step * lambda / T(2));
      q = step * inverse;
      z = lambda * q;
      dz_dlambda = q * inverse;
      dz_dstep = lambda * inverse * inverse;
      dq_dlambda = q * q / T(2);
      dq_dstep = inverse * inverse;
    }
  }
};

// What the low-rank part adds, for a channel: (9) to (12).
template <class E, class T>
struct LowRank {
  using Complex = std::complex<T>;
  T s, R, beta = 0;        // 2 / Delta, and the scalars of (10) and (12)
  std::vector<Complex> D;  // (9)

  LowRank(const Channel<E, T>& channel, T step) : s(2 / step) {
    T rho = 0;
    for (int64_t k = 0; k < channel.n; ++k) {
      const Complex P = channel.read(channel.P, channel.copy, k);
      D.push_back(T(1) / (s - channel.lambda(k)));
      rho += 2 * std::norm(P) * D.back().real();
      beta += 4 * (std::conj(P) * D.back() * channel.read(channel.B, channel.copy, k)).real();
    }
    R = 1 / (1 + rho);
  }
};

template <class E, class T>
void forward(const DiscretizeForward& args, int64_t e) {
  using Complex = std::complex<T>;
  const Channel<E, T> channel(args, e);
  const T step = channel.step();
  for (int64_t k = 0; k < channel.n; ++k) {
    const Mode<T> mode(step, channel.lambda(k), channel.zoh);
    channel.put(mode.z, args.z, k);
    channel.put(channel.read(channel.B, channel.copy, k) * mode.q, args.b, k);
    channel.put(channel.read(channel.C, e, k) * static_cast<T>(channel.parts), args.c, k);
  }
  if (!args.P) return;
  const LowRank<E, T> low(channel, step);
  for (int64_t k = 0; k < channel.n; ++k) {
    const Complex P = channel.read(channel.P, channel.copy, k), D = low.D[static_cast<size_t>(k)], g = D * P;
    channel.put(g, args.g, k);                                                                             // (11)
    channel.put(4 * low.s * low.R * std::conj(P) * D, args.f, k);                                          // (11)
    channel.put(T(2) * D * channel.read(channel.B, channel.copy, k) - g * (low.R * low.beta), args.b, k);  // (12)
  }
}

// Adds the gradients of channel e to those of its copy.
template <class E, class T>
void backward(const DiscretizeBackward& args, int64_t e) {
  using Complex = std::complex<T>;
  const Channel<E, T> channel(args, e);
  const int64_t n = channel.n, copy = channel.copy;
  const T step = channel.step();
  std::vector<Complex> dlambda(static_cast<size_t>(n));
  T dstep = 0;
  for (int64_t k = 0; k < n; ++k) {
    channel.add(channel.take(args.dc, k) * static_cast<T>(channel.parts), args.dC, e, k);
    if (args.P) continue;
    const Mode<T> mode(step, channel.lambda(k), channel.zoh);
    const Complex dz = channel.take(args.dz, k), db = channel.take(args.db, k),
                  dq = std::conj(channel.read(channel.B, copy, k)) * db;
    channel.add(std::conj(mode.q) * db, args.dB, copy, k);
    dlambda[static_cast<size_t>(k)] = std::conj(mode.dz_dlambda) * dz + std::conj(mode.dq_dlambda) * dq;
    dstep += (std::conj(mode.dz_dstep) * dz + std::conj(mode.dq_dstep) * dq).real();
  }
  if (args.P) {  // (13)
    const LowRank<E, T> low(channel, step);
    const T s = low.s, R = low.R, phi = R * low.beta;
    T dphi = 0, dR = 0, ds = 0;
    for (int64_t k = 0; k < n; ++k) {
      const Complex P = channel.read(channel.P, copy, k), D = low.D[static_cast<size_t>(k)];
      dphi -= (std::conj(channel.take(args.db, k)) * D * P).real();
      dR += (std::conj(channel.take(args.df, k)) * (4 * s) * std::conj(P) * D).real();
    }
    dR += low.beta * dphi;
    const T dbeta = R * dphi, drho = -R * R * dR;
    for (int64_t k = 0; k < n; ++k) {
      const Complex P = channel.read(channel.P, copy, k), B = channel.read(channel.B, copy, k),
                    D = low.D[static_cast<size_t>(k)];
      const Complex dz = channel.take(args.dz, k), db = channel.take(args.db, k), df = channel.take(args.df, k),
                    dg = channel.take(args.dg, k) - phi * db;
      const Complex dD = 2 * s * dz + std::conj(P) * dg + (4 * s * R) * P * df + T(2) * std::conj(B) * db +
                         (4 * dbeta) * P * std::conj(B) + 2 * std::norm(P) * drho;
      const Complex dP =
          std::conj(D) * dg + (4 * s * R) * D * std::conj(df) + (4 * dbeta) * D * B + (4 * D.real() * drho) * P;
      channel.add(T(2) * std::conj(D) * db + (4 * dbeta) * P * std::conj(D), args.dB, copy, k);
      channel.add(dP, args.dP, copy, k);
      dlambda[static_cast<size_t>(k)] = std::conj(D * D) * dD;
      ds += (std::conj(dz) * T(2) * D + std::conj(df) * (4 * R) * std::conj(P) * D - std::conj(dD) * D * D).real();
    }
    dstep = -ds * 2 / (step * step);
  }
  for (int64_t k = 0; k < n; ++k) {
    const Complex d = dlambda[static_cast<size_t>(k)];
    if (args.dA_real) args.dA_real.data<E>()[copy * n + k] += static_cast<E>(d.real() * channel.lambda(k).real());
    if (args.dA_imag) args.dA_imag.data<E>()[copy * n + k] -= static_cast<E>(d.imag());
  }
  if (args.dinv_dt) args.dinv_dt.data<E>()[e] = static_cast<E>(dstep * channel.dstep());
}

inline void clear(const DiscretizeBackward& args) {
  for (const Tensor& sum : {args.dA_real, args.dA_imag, args.dB, args.dC, args.dP})
    if (sum) sum.fill_zero();
}

}  // namespace ssm::discretize_channel
