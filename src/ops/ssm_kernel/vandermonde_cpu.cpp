// The Vandermonde product of ssm_kernel with SIMD over channels and threads over blocks of them. Powers are walked in
// f32 for kLeap taps, from a start that is walked in double in leaps of as many. Equations: README.md.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/ssm_kernel/vandermonde_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <complex>
#include <vector>

#include "ops/simd_math-inl.h"
#include "ops/ssm_kernel/vandermonde.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::cpu::HWY_NAMESPACE {

using Tag = hn::ScalableTag<float>;
using Vec = hn::Vec<Tag>;
using Complex = std::complex<double>;

constexpr int64_t kLeap = 64;
constexpr int64_t kBlock = 16;  // channels of a task: a cache line of every row of K
constexpr size_t kMostLanes = 16;

// A mode of some adjacent channels, at most a vector.
struct Lanes {
  int64_t first, n, e;
  size_t count;

  Complex read(const Tensor& from, int64_t k, size_t lane) const {
    const float* at = from.data<float>() + k * e + first + static_cast<int64_t>(lane);
    return {at[0], from.size(0) == 2 ? at[n * e] : 0.0f};
  }
  void write(const Tensor& to, int64_t k, size_t lane, Complex value) const {
    float* at = to.data<float>() + k * e + first + static_cast<int64_t>(lane);
    at[0] = static_cast<float>(value.real());
    if (to.size(0) == 2) at[n * e] = static_cast<float>(value.imag());
  }
};

// One number a lane, in double; the lanes that no channel has are 0.
struct Row {
  std::array<Complex, kMostLanes> lane{};
  // As vectors of f32.
  void round(Vec& re, Vec& im) const {
    HWY_ALIGN float parts[2][kMostLanes];
    for (size_t i = 0; i < kMostLanes; ++i) {
      parts[0][i] = static_cast<float>(lane[i].real());
      parts[1][i] = static_cast<float>(lane[i].imag());
    }
    re = hn::LoadU(Tag(), parts[0]);
    im = hn::LoadU(Tag(), parts[1]);
  }
};

Complex leap_of(Complex z) {  // (1 + z)^kLeap
  Complex power = 1.0 + z;
  for (int64_t i = 1; i < kLeap; i *= 2) power *= power;
  return power;
}

// Calls body(lanes) for vectors that cover all channels, a block a task.
template <class Body>
void for_vectors(const Tensor& z, Threads& threads, const Body& body) {
  const int64_t n = z.size(1), e = z.size(2);
  const auto width = static_cast<int64_t>(std::min(hn::Lanes(Tag()), kMostLanes));
  threads.parallel((e + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const int64_t end = std::min(e, (block + 1) * kBlock);
    for (int64_t c = block * kBlock; c < end; c += width)
      body(Lanes{c, n, e, static_cast<size_t>(std::min(width, end - c))});
  });
}

// Adds q, q (1 + z), q (1 + z)^2, ... to `taps` rows; real parts of both are all there is where the system is real.
template <bool kComplex>
HWY_INLINE void add_powers(Vec q_re, Vec q_im, Vec z_re, Vec z_im, int64_t taps, float* to, int64_t width) {
  for (int64_t i = 0; i < taps; ++i) {
    hn::StoreU(hn::Add(hn::LoadU(Tag(), to + i * width), q_re), Tag(), to + i * width);
    Vec change_re = hn::Mul(q_re, z_re);
    if constexpr (kComplex) {
      change_re = hn::NegMulAdd(q_im, z_im, change_re);
      q_im = hn::Add(q_im, hn::MulAdd(q_re, z_im, hn::Mul(q_im, z_re)));
    }
    q_re = hn::Add(q_re, change_re);
  }
}

void vandermonde_forward(const SsmKernelForward& args, Threads& threads) {
  const int64_t length = args.K.size(0);
  const auto K = args.K.matrix<float>();
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  for_vectors(args.z, threads, [&](const Lanes& lanes) {
    const auto n = static_cast<size_t>(lanes.n);
    std::vector<Row> z(n), q(n), leap(n);
    for (size_t k = 0; k < n; ++k)
      for (size_t i = 0; i < lanes.count; ++i) {
        const auto mode = static_cast<int64_t>(k);
        z[k].lane[i] = lanes.read(args.z, mode, i);
        q[k].lane[i] = lanes.read(args.c, mode, i) * lanes.read(args.b, mode, i);
        leap[k].lane[i] = leap_of(z[k].lane[i]);
      }
    std::vector<float> taps(static_cast<size_t>(kLeap * width));
    for (int64_t l = 0; l < length; l += kLeap) {
      const int64_t count = std::min(kLeap, length - l);
      std::fill(taps.begin(), taps.end(), 0.0f);
      for (size_t k = 0; k < n; ++k) {
        Vec q_re, q_im, z_re, z_im;
        q[k].round(q_re, q_im);
        z[k].round(z_re, z_im);
        if (args.z.size(0) == 2)
          add_powers<true>(q_re, q_im, z_re, z_im, count, taps.data(), width);
        else
          add_powers<false>(q_re, q_im, z_re, z_im, count, taps.data(), width);
        for (size_t i = 0; i < lanes.count; ++i) q[k].lane[i] *= leap[k].lane[i];
      }
      for (int64_t i = 0; i < count; ++i)
        store_up_to(Tag(), hn::LoadU(Tag(), taps.data() + i * width), K[l + i] + lanes.first, lanes.count);
    }
  });
}

// The sums over a leap, of dK times the conjugate powers in `table`, plain and weighted with 0, 1, 2, ...
template <bool kComplex>
HWY_INLINE void leap_sums(const float* table, const float* dK, int64_t taps, int64_t width, Vec (&plain)[2],
                          Vec (&weighted)[2]) {
  for (int p = 0; p < 2; ++p) plain[p] = weighted[p] = hn::Zero(Tag());
  Vec weight = hn::Zero(Tag());
  const Vec one = hn::Set(Tag(), 1.0f);
  for (int64_t i = 0; i < taps; ++i) {
    const Vec gradient = hn::LoadU(Tag(), dK + i * width), scaled = hn::Mul(gradient, weight);
    for (int p = 0; p < (kComplex ? 2 : 1); ++p) {
      const Vec power = hn::LoadU(Tag(), table + (2 * i + p) * width);
      plain[p] = hn::MulAdd(power, gradient, plain[p]);
      weighted[p] = hn::MulAdd(power, scaled, weighted[p]);
    }
    weight = hn::Add(weight, one);
  }
}

void vandermonde_backward(const SsmKernelBackward& args, Threads& threads) {
  const int64_t length = args.dK.size(0);
  const auto dK = args.dK.matrix<float>();
  const auto width = static_cast<int64_t>(hn::Lanes(Tag()));
  for_vectors(args.z, threads, [&](const Lanes& lanes) {
    std::vector<float> rows(static_cast<size_t>(std::max<int64_t>(length, 1) * width));  // dK of these channels
    for (int64_t l = 0; l < length; ++l)
      hn::StoreU(load_up_to(Tag(), dK[l] + lanes.first, lanes.count), Tag(), rows.data() + l * width);
    std::vector<float> table(static_cast<size_t>(2 * kLeap * width));
    for (int64_t k = 0; k < lanes.n; ++k) {
      Row z, leap, power, plain, weighted;  // plain, weighted: (6) without its last factor
      for (size_t i = 0; i < lanes.count; ++i) {
        z.lane[i] = std::conj(lanes.read(args.z, k, i));
        leap.lane[i] = leap_of(z.lane[i]);
        power.lane[i] = 1;
      }
      Row walk = power;
      for (int64_t i = 0; i < kLeap; ++i) {
        Vec re, im;
        walk.round(re, im);
        hn::StoreU(re, Tag(), table.data() + 2 * i * width);
        hn::StoreU(im, Tag(), table.data() + (2 * i + 1) * width);
        for (size_t j = 0; j < lanes.count; ++j) walk.lane[j] *= 1.0 + z.lane[j];
      }
      for (int64_t l = 1; l < length; l += kLeap) {  // tap l has power l - 1
        const int64_t taps = std::min(kLeap, length - l);
        Vec sums[2], more[2];
        if (args.z.size(0) == 2)
          leap_sums<true>(table.data(), rows.data() + l * width, taps, width, sums, more);
        else
          leap_sums<false>(table.data(), rows.data() + l * width, taps, width, sums, more);
        HWY_ALIGN float out[4][kMostLanes];
        for (int p = 0; p < 2; ++p) {
          hn::StoreU(sums[p], Tag(), out[p]);
          hn::StoreU(more[p], Tag(), out[2 + p]);
        }
        for (size_t i = 0; i < lanes.count; ++i) {
          const Complex first(out[0][i], out[1][i]), second(out[2][i], out[3][i]);
          plain.lane[i] += power.lane[i] * first;
          weighted.lane[i] += power.lane[i] * (second + static_cast<double>(l) * first);
          power.lane[i] *= leap.lane[i];
        }
      }
      for (size_t i = 0; i < lanes.count; ++i) {
        const Complex b = lanes.read(args.b, k, i), c = lanes.read(args.c, k, i);
        Complex dw = plain.lane[i] * (1.0 + z.lane[i]);  // (5)
        if (length > 0) dw += static_cast<double>(rows[i]);
        lanes.write(args.dc, k, i, std::conj(b) * dw);
        lanes.write(args.db, k, i, std::conj(c) * dw);
        lanes.write(args.dz, k, i, std::conj(b * c) * weighted.lane[i]);  // (6)
      }
    }
  });
}

}  // namespace ssm::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm::cpu {
HWY_EXPORT(vandermonde_forward);
HWY_EXPORT(vandermonde_backward);

void vandermonde_forward(const SsmKernelForward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(vandermonde_forward)(args, threads);
}

void vandermonde_backward(const SsmKernelBackward& args, Threads& threads) {
  HWY_DYNAMIC_DISPATCH(vandermonde_backward)(args, threads);
}
}  // namespace ssm::cpu
#endif
