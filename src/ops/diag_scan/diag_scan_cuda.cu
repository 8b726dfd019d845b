// diag_scan on a GPU: warps whose lanes are the modes of a channel step through a sequence, 32 tokens at a time, whose
// sums over modes are made together. Sequences of a backward share partial sums of parameters' gradients, which a
// second kernel adds in order. Equations: README.md.
#include <algorithm>

#include "core/cuda_kernel.cuh"
#include "ops/complex.cuh"
#include "ops/diag_scan/diag_scan.h"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

using Number = Complex<float>;
constexpr int kTokens = kWarp;          // of a chunk: a lane each
constexpr int kChannels = 8;            // of a block, where a channel is one warp
constexpr int kMostModes = 4;           // of a lane
constexpr int kMostWarps = 32;          // of a channel
constexpr int kWantedWarps = 24;        // of a multiprocessor, in a backward: enough to hide one another's waiting
constexpr int64_t kMostGroups = 65535;  // a grid's y
constexpr unsigned kAll = 0xffffffffu;

// Lane i returns the sum of all lanes' value[i]: each step halves what is left, 31 exchanges for 32 sums. A template of
// the step and no loop: the array then stays in registers.
template <int kHalf = kWarp / 2>
__device__ __forceinline__ float sums_of_lanes(float (&value)[kWarp], int lane) {
  if constexpr (kHalf == 0) {
    return value[0];
  } else {
    const bool upper = lane & kHalf;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float low = value[i], high = value[i + kHalf];
      value[i] = (upper ? high : low) + __shfl_xor_sync(kAll, upper ? low : high, kHalf);
    }
    return sums_of_lanes<kHalf / 2>(value, lane);
  }
}

// Adds over the warps of a channel, through two halves of shared memory in turn: a half is written again only after
// the barrier that follows its last reading.
struct ChannelSums {
  float* buffer;  // (2, warps, 32); unused by a single warp
  int warps, warp, lane, half = 0;

  __device__ float each_lane(float value) {  // the sum over warps, lane by lane
    if (warps == 1) return value;
    float* const now = buffer + half * warps * kWarp;
    half ^= 1;
    now[warp * kWarp + lane] = value;
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += now[w * kWarp + lane];
    return sum;
  }
  __device__ float all(float value) { return each_lane(warp_sum(value)); }  // over lanes and warps
};

struct System {
  const float *z, *b, *c, *f, *g, *D;
  int64_t parts, n, e;

  explicit System(const auto& args)
      : z(elements<const float>(args.z)),
        b(elements<const float>(args.b)),
        c(elements<const float>(args.c)),
        f(elements<const float>(args.f)),
        g(elements<const float>(args.g)),
        D(elements<const float>(args.D)),
        parts(args.z.size(0)),
        n(args.z.size(1)),
        e(args.z.size(2)) {}

  __device__ int64_t row() const { return parts * n * e; }
  __device__ Number read(const float* from, int64_t k, int64_t channel) const {  // 0 without `from` and past the modes
    if (!from || k >= n) return {};
    return {from[k * e + channel], parts == 2 ? from[(n + k) * e + channel] : 0.0f};
  }
  __device__ void write(Number value, float* to, int64_t k, int64_t channel) const {
    if (!to || k >= n) return;
    to[k * e + channel] = value.re;
    if (parts == 2) to[(n + k) * e + channel] = value.im;
  }
};

// Where a thread is: blockDim is (32 warps of a channel, channels).
struct Place {
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;

  template <int kModes>
  __device__ int64_t mode(int i) const {
    return static_cast<int64_t>(warp * kModes + i) * kWarp + lane;
  }
};

// The modes of a lane. A lane past them has zeros, which change nothing.
template <int kModes>
struct Modes {
  Number z[kModes], b[kModes], f[kModes], g[kModes];
  bool low_rank;

  __device__ Modes(const System& system, const Place& at) : low_rank(system.f) {
#pragma unroll
    for (int i = 0; i < kModes; ++i) {
      const int64_t k = at.mode<kModes>(i);
      z[i] = system.read(system.z, k, at.channel);
      b[i] = system.read(system.b, k, at.channel);
      f[i] = system.read(system.f, k, at.channel);
      g[i] = system.read(system.g, k, at.channel);
    }
  }
  // (1) and (2) for a token; returns kappa.
  __device__ float advance(float u, Number (&x)[kModes], ChannelSums& sums) const {
    float kappa = 0;
    if (low_rank) {
#pragma unroll
      for (int i = 0; i < kModes; ++i) kappa = real_multiply_add(f[i], x[i], kappa);
      kappa = sums.all(kappa);
    }
#pragma unroll
    for (int i = 0; i < kModes; ++i) {
      Number change = u * b[i];
      if (low_rank) change = scale_add(-kappa, g[i], change);
      x[i] = x[i] + multiply_add(z[i], x[i], change);
    }
    return kappa;
  }
};

__device__ __forceinline__ int64_t first_span(int64_t begin, int64_t s) { return begin / kDiagScanSpan + s; }

template <class T>
struct ForwardPointers {
  Rows<const T> u;
  Rows<T> y;
  float *state, *starts;
  const int64_t *offsets, *slots;
  int64_t sequences;
};

template <class T, int kModes>
__global__ void __launch_bounds__(kModes == 1 ? kWarp * kChannels : kWarp * kMostWarps)
    forward_kernel(System system, ForwardPointers<T> p) {
  constexpr int kUnroll = kModes == 1 ? kTokens : 1;  // with more modes the arrays are in local memory
  __shared__ float buffer[kModes == 1 ? 1 : 2 * kMostWarps * kWarp];
  const Place at;
  if (at.channel >= system.e) return;
  ChannelSums sums{buffer, at.warps, at.warp, at.lane};
  const Modes<kModes> modes(system, at);
  Number c[kModes];
#pragma unroll
  for (int i = 0; i < kModes; ++i) c[i] = p.y ? system.read(system.c, at.mode<kModes>(i), at.channel) : Number{};
  const float D = system.D ? system.D[at.channel] : 0.0f;
  for (int64_t s = blockIdx.y; s < p.sequences; s += gridDim.y) {
    const int64_t begin = p.offsets[s], end = p.offsets[s + 1];
    float* const carried = p.state ? p.state + p.slots[s] * system.row() : nullptr;
    float* start = p.starts ? p.starts + first_span(begin, s) * system.row() : nullptr;
    Number x[kModes];
#pragma unroll
    for (int i = 0; i < kModes; ++i) x[i] = system.read(carried, at.mode<kModes>(i), at.channel);
    for (int64_t t = begin; t < end; t += kTokens) {
      if (start && (t - begin) % kDiagScanSpan == 0) {
#pragma unroll
        for (int i = 0; i < kModes; ++i) system.write(x[i], start, at.mode<kModes>(i), at.channel);
        start += system.row();
      }
      const int tokens = static_cast<int>(min(static_cast<int64_t>(kTokens), end - t));
      const float mine = at.lane < tokens ? to_float(p.u[t + at.lane][at.channel]) : 0.0f;
      float out[kTokens];
#pragma unroll kUnroll
      for (int j = 0; j < kTokens; ++j) {
        out[j] = 0;
        if (j >= tokens) continue;
        modes.advance(__shfl_sync(kAll, mine, j), x, sums);
#pragma unroll
        for (int i = 0; i < kModes; ++i) out[j] = real_multiply_add(c[i], x[i], out[j]);
      }
      if (!p.y) continue;
      const float y = sums.each_lane(sums_of_lanes(out, at.lane));
      if (at.warp == 0 && at.lane < tokens) p.y[t + at.lane][at.channel] = from_float<T>(fmaf(D, mine, y));  // (3)
    }
#pragma unroll
    for (int i = 0; i < kModes; ++i) system.write(x[i], carried, at.mode<kModes>(i), at.channel);
  }
}

constexpr int kSums = 5;  // dz, db, dc, df, dg
struct Gradients {
  float* to[kSums];
  float* dD;
};

template <class T>
struct BackwardPointers {
  Rows<const T> u, dy;
  Rows<T> du;
  const float* starts;
  float* dstate;
  const int64_t *offsets, *slots;
  int64_t sequences;
  float* partial;  // (groups, kSums rows of a system and e numbers of dD)
};

template <class T, int kModes>
__global__ void __launch_bounds__(kModes == 1 ? kWarp * kChannels : kWarp * kMostWarps)
    backward_kernel(System system, BackwardPointers<T> p) {
  constexpr int kUnroll = kModes == 1 ? kTokens : 1;  // with more modes the arrays are in local memory
  __shared__ float buffer[kModes == 1 ? 1 : 2 * kMostWarps * kWarp];
  const Place at;
  if (at.channel >= system.e) return;
  ChannelSums sums{buffer, at.warps, at.warp, at.lane};
  const Modes<kModes> modes(system, at);
  Number c[kModes], dz[kModes], db[kModes], dc[kModes], df[kModes], dg[kModes];
#pragma unroll
  for (int i = 0; i < kModes; ++i) c[i] = system.read(system.c, at.mode<kModes>(i), at.channel);
  const float D = system.D ? system.D[at.channel] : 0.0f;
  float dD = 0;

  for (int64_t s = blockIdx.y; s < p.sequences; s += gridDim.y) {
    const int64_t begin = p.offsets[s], end = p.offsets[s + 1];
    float* const carried = p.dstate ? p.dstate + p.slots[s] * system.row() : nullptr;
    Number later[kModes];
#pragma unroll
    for (int i = 0; i < kModes; ++i) later[i] = system.read(carried, at.mode<kModes>(i), at.channel);
    for (int64_t chunk = (end - begin + kTokens - 1) / kTokens - 1; chunk >= 0; --chunk) {
      const int64_t t = begin + chunk * kTokens, span = chunk / (kDiagScanSpan / kTokens);
      const int tokens = static_cast<int>(min(static_cast<int64_t>(kTokens), end - t));
      Number x[kModes];
      const float* start = p.starts + (first_span(begin, s) + span) * system.row();
#pragma unroll
      for (int i = 0; i < kModes; ++i) x[i] = system.read(start, at.mode<kModes>(i), at.channel);
      // From the start of the span to this chunk, whose states are then kept.
      for (int64_t before = begin + span * kDiagScanSpan; before < t; before += kTokens) {
        const float u = to_float(p.u[before + at.lane][at.channel]);
        for (int j = 0; j < kTokens; ++j) modes.advance(__shfl_sync(kAll, u, j), x, sums);
      }
      const bool inside = at.lane < tokens;
      const float my_u = inside ? to_float(p.u[t + at.lane][at.channel]) : 0.0f,
                  my_dy = inside && p.dy ? to_float(p.dy[t + at.lane][at.channel]) : 0.0f;
      Number path[kTokens][kModes];  // states before each token
      float my_kappa = 0, input[kTokens];
#pragma unroll kUnroll
      for (int j = 0; j < kTokens; ++j) {
#pragma unroll
        for (int i = 0; i < kModes; ++i) path[j][i] = x[i];
        if (j >= tokens) continue;
        const float kappa = modes.advance(__shfl_sync(kAll, my_u, j), x, sums);
        if (at.lane == j) my_kappa = kappa;
      }
#pragma unroll kUnroll
      for (int j = kTokens - 1; j >= 0; --j) {
        input[j] = 0;
        if (j >= tokens) continue;
        const float u = __shfl_sync(kAll, my_u, j), dy = __shfl_sync(kAll, my_dy, j);
        const float kappa = __shfl_sync(kAll, my_kappa, j);
        float dkappa = 0;
#pragma unroll
        for (int i = 0; i < kModes; ++i) {
          later[i] = scale_add(dy, conj(c[i]), later[i]);                     // (4)
          dc[i] = scale_add(dy, conj(x[i]), dc[i]);                           // (6)
          db[i] = scale_add(u, later[i], db[i]);                              // (6)
          dz[i] = conj_multiply_add(path[j][i], later[i], dz[i]);             // (6)
          input[j] = real_conj_multiply_add(modes.b[i], later[i], input[j]);  // (5)
          if (modes.low_rank) {
            dg[i] = scale_add(-kappa, later[i], dg[i]);                     // (7)
            dkappa = real_conj_multiply_add(modes.g[i], later[i], dkappa);  // (7), its negative
          }
        }
        if (modes.low_rank) dkappa = -sums.all(dkappa);
#pragma unroll
        for (int i = 0; i < kModes; ++i) {
          later[i] = later[i] + conj(modes.z[i]) * later[i];  // (4)
          if (modes.low_rank) {
            df[i] = scale_add(dkappa, conj(path[j][i]), df[i]);  // (7)
            later[i] = scale_add(dkappa, conj(modes.f[i]), later[i]);
          }
          x[i] = path[j][i];
        }
      }
      const float du = sums.each_lane(sums_of_lanes(input, at.lane));
      if (at.warp == 0 && inside && p.du) p.du[t + at.lane][at.channel] = from_float<T>(fmaf(D, my_dy, du));
      dD = fmaf(my_dy, my_u, dD);
    }
#pragma unroll
    for (int i = 0; i < kModes; ++i) system.write(later[i], carried, at.mode<kModes>(i), at.channel);
  }

  const int64_t row = system.row();
  float* const mine = p.partial + blockIdx.y * (kSums * row + system.e);
#pragma unroll
  for (int i = 0; i < kModes; ++i) {
    const Number all[kSums] = {dz[i], db[i], dc[i], df[i], dg[i]};
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) system.write(all[sum], mine + sum * row, at.mode<kModes>(i), at.channel);
  }
  dD = warp_sum(dD);
  if (at.warp == 0 && at.lane == 0) mine[kSums * row + at.channel] = dD;
}

// partial (groups, kSums rows and e numbers): sums over groups.
__global__ void sum_groups_kernel(const float* partial, int64_t groups, int64_t row, int64_t e, Gradients gradients) {
  const int64_t size = kSums * row + e, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  float* const to = i / row < kSums ? gradients.to[i / row] : gradients.dD;
  if (!to) return;
  float sum = 0;
  for (int64_t group = 0; group < groups; ++group) sum += partial[group * size + i];
  to[i - min(i / row, static_cast<int64_t>(kSums)) * row] = sum;
}

// launch(constant modes of a lane, grid's x, block).
template <class Launch>
void with_modes(const Tensor& z, const Launch& launch) {
  const int64_t n = z.size(1), e = z.size(2);
  constexpr int64_t kMost = int64_t{kWarp} * kMostModes * kMostWarps;
  require(n <= kMost, "diag_scan: ", n, " modes on a GPU, expected at most ", kMost, "; use --device cpu");
  if (n <= kWarp)
    return launch(std::integral_constant<int, 1>(), static_cast<unsigned>(divide_up(e, kChannels)),
                  dim3(kWarp, kChannels));
  launch(std::integral_constant<int, kMostModes>(), static_cast<unsigned>(e),
         dim3(static_cast<unsigned>(kWarp * divide_up(n, kWarp * kMostModes))));
}

}  // namespace

void diag_scan_forward(const DiagScanForward& args, Stream stream) {
  const System system(args);
  if (system.e == 0 || args.seqs->count() == 0) return;
  const auto& [offsets, slots] = args.seqs->tables(args.u.device());
  const auto groups = static_cast<unsigned>(std::min(kMostGroups, args.seqs->count()));
  with_element(args.u.dtype(), "diag_scan", [&](auto element) {
    using T = decltype(element);
    const ForwardPointers<T> pointers{.u = rows<const T>(args.u),
                                      .y = rows<T>(args.y),
                                      .state = elements<float>(args.state),
                                      .starts = elements<float>(args.starts),
                                      .offsets = elements<const int64_t>(offsets),
                                      .slots = elements<const int64_t>(slots),
                                      .sequences = args.seqs->count()};
    with_modes(args.z, [&]<int kModes>(std::integral_constant<int, kModes>, unsigned blocks, dim3 block) {
      launch("diag_scan", forward_kernel<T, kModes>, dim3(blocks, groups), block, stream, system, pointers);
    });
  });
}

void diag_scan_backward(const DiagScanBackward& args, Stream stream) {
  const System system(args);
  if (system.e == 0) return;
  const Device device = args.u.device();
  const auto& [offsets, slots] = args.seqs->tables(device);
  const int64_t warps = system.e * divide_up(system.n, kWarp * (system.n <= kWarp ? 1 : kMostModes));
  const int64_t groups =
      std::min({kMostGroups, std::max<int64_t>(1, args.seqs->count()),
                divide_up(int64_t{kWantedWarps} * multiprocessors(device), std::max<int64_t>(1, warps))});
  const int64_t row = args.z.count();
  const Tensor partial = Tensor::empty({groups, kSums * row + system.e}, DType::f32, device);
  with_element(args.u.dtype(), "diag_scan", [&](auto element) {
    using T = decltype(element);
    const BackwardPointers<T> pointers{.u = rows<const T>(args.u),
                                       .dy = rows<const T>(args.dy),
                                       .du = rows<T>(args.du),
                                       .starts = elements<const float>(args.starts),
                                       .dstate = elements<float>(args.dstate),
                                       .offsets = elements<const int64_t>(offsets),
                                       .slots = elements<const int64_t>(slots),
                                       .sequences = args.seqs->count(),
                                       .partial = elements<float>(partial)};
    with_modes(args.z, [&]<int kModes>(std::integral_constant<int, kModes>, unsigned blocks, dim3 block) {
      launch("diag_scan", backward_kernel<T, kModes>, dim3(blocks, static_cast<unsigned>(groups)), block, stream,
             system, pointers);
    });
  });
  constexpr int kThreads = 256;
  launch("diag_scan", sum_groups_kernel, dim3(static_cast<unsigned>(divide_up(partial.size(1), kThreads))),
         dim3(kThreads), stream, elements<const float>(partial), groups, row, system.e,
         Gradients{{elements<float>(args.dz), elements<float>(args.db), elements<float>(args.dc),
                    elements<float>(args.df), elements<float>(args.dg)},
                   elements<float>(args.dD)});
}

}  // namespace ssm::cuda
