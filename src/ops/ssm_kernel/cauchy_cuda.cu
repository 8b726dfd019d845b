// The kernel of a system with a rank-one part on a GPU, in double: Cauchy products on half a circle of nodes, of which
// the other half is conjugate, Woodbury's formula and a transform back. Equations: README.md.
#include <algorithm>
#include <cmath>

#include "ops/fft_conv/fourier.h"
#include "ops/ssm_kernel/ssm_kernel_cuda.cuh"

namespace ssm::cuda {
namespace {

using Exact = Complex<double>;
constexpr int kWarp = 32;
constexpr int kThreads = 128;     // nodes of a block
constexpr int kModesAtOnce = 32;  // of a block's shared memory
constexpr int kWarps = 8;         // modes of a block of the sums over nodes
constexpr int kTile = 32, kTileRows = 8;
constexpr int64_t kPieceBytes = int64_t{64} << 20;  // of transforms that are held at once
constexpr int kPairs = 4;                           // of (4): c b, c g, f b, f g
enum Pair { kCB, kCG, kFB, kFG };

// The nodes rho e^(-2 pi i j / m), (7) and (8): those from 0 to m / 2.
struct Circle {
  int64_t taps, nodes;
  double log_radius;

  explicit Circle(int64_t length)
      : taps(length),
        nodes(fourier_size(length + (length + 1) / 2)),
        log_radius(-16 * std::log(10.0) / static_cast<double>(nodes + length)) {}
  __host__ __device__ int64_t half() const { return nodes / 2 + 1; }
  __device__ double weight(int64_t l) const {
    return exp(-log_radius * static_cast<double>(l)) / static_cast<double>(nodes);
  }
};

__global__ void nodes_kernel(Circle circle, Exact* zeta) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= circle.half()) return;
  double sine, cosine;
  sincospi(2 * static_cast<double>(j) / static_cast<double>(circle.nodes), &sine, &cosine);
  const double radius = exp(circle.log_radius);
  zeta[j] = {radius * cosine, -radius * sine};
}

// 1 / (1 - zeta a)
__device__ __forceinline__ Exact resolvent(Exact zeta, Exact a) {
  return inverse(Exact{fma(zeta.im, a.im, fma(-zeta.re, a.re, 1.0)), -fma(zeta.re, a.im, zeta.im * a.re)});
}

struct System {
  ModeTable z, b, c, f, g;
  explicit System(const auto& args) : z(args.z), b(args.b), c(args.c), f(args.f), g(args.g) {}

  __device__ Exact a(int64_t k, int64_t e) const {
    const Exact change = z.read(k, e);
    return {1 + change.re, change.im};
  }
};

// The products v of a mode.
struct Products {
  Exact v[kPairs];
  __device__ Products() = default;
  __device__ Products(const System& system, int64_t k, int64_t e) {
    const Exact b = system.b.read(k, e), c = system.c.read(k, e), f = system.f.read(k, e), g = system.g.read(k, e);
    v[kCB] = c * b;
    v[kCG] = c * g;
    v[kFB] = f * b;
    v[kFG] = f * g;
  }
};

// r of (4) for a node, one of the block's; every thread of the block calls it.
__device__ __forceinline__ void cauchy_sums(const System& system, int64_t e, Exact zeta, Exact (&r)[kPairs]) {
  __shared__ Exact modes[kModesAtOnce];
  __shared__ Products products[kModesAtOnce];
  for (int64_t first = 0; first < system.z.n; first += kModesAtOnce) {
    const auto count = static_cast<int>(min(static_cast<int64_t>(kModesAtOnce), system.z.n - first));
    __syncthreads();  // the modes before are not read any more
    if (threadIdx.x < count) {
      modes[threadIdx.x] = system.a(first + threadIdx.x, e);
      products[threadIdx.x] = Products(system, first + threadIdx.x, e);
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const Exact a = modes[k], d = resolvent(zeta, a), mirrored = resolvent(zeta, conj(a));
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const Exact v = products[k].v[pair];
        r[pair] = multiply_add(v, d, multiply_add(conj(v), mirrored, r[pair]));
      }
    }
  }
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) r[pair] = 0.5 * r[pair];
}

__device__ __forceinline__ Exact woodbury(Exact zeta, const Exact (&r)[kPairs]) {
  const Exact product = zeta * r[kFG];
  return inverse(Exact{1 + product.re, product.im});
}

// transform (channels, half): (4), for channels from `first` on.
__global__ void __launch_bounds__(kThreads)
    transform_kernel(System system, Circle circle, const Exact* nodes, int64_t first, Exact* transform) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, channel = blockIdx.y;
  const Exact zeta = nodes[min(j, circle.half() - 1)];
  Exact r[kPairs];
  cauchy_sums(system, first + channel, zeta, r);
  if (j >= circle.half()) return;
  const Exact rank_one = zeta * r[kCG] * r[kFB] * woodbury(zeta, r);
  transform[channel * circle.half() + j] = r[kCB] - rank_one;
}

// gradients (channels, half) holds that of the transform; dr (channels, 3, half) gets those of the other sums.
__global__ void __launch_bounds__(kThreads)
    transform_backward_kernel(System system, Circle circle, const Exact* nodes, int64_t first, const Exact* gradients,
                              Exact* dr) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, channel = blockIdx.y,
                half = circle.half();
  const Exact zeta = nodes[min(j, half - 1)];
  Exact r[kPairs];
  cauchy_sums(system, first + channel, zeta, r);
  if (j >= half) return;
  const Exact d = gradients[channel * half + j], W = woodbury(zeta, r), zeta_W = zeta * W;
  Exact* const to = dr + channel * (kPairs - 1) * half + j;
  to[0] = conj(Exact{-1, 0} * zeta_W * r[kFB]) * d;
  to[half] = conj(Exact{-1, 0} * zeta_W * r[kCG]) * d;
  to[2 * half] = conj(zeta_W * zeta_W * r[kCG] * r[kFB]) * d;
}

__device__ __forceinline__ Exact warp_sum(Exact value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value.re += __shfl_xor_sync(0xffffffffu, value.re, step);
    value.im += __shfl_xor_sync(0xffffffffu, value.im, step);
  }
  return value;
}

struct Gradients {
  ModeTable dz, db, dc, df, dg;
};

// A warp a mode: (9) and (10), both halves of the circle from one.
__global__ void __launch_bounds__(kWarp* kWarps)
    modes_kernel(System system, Circle circle, const Exact* nodes, int64_t first, const Exact* gradients,
                 const Exact* dr, Gradients to) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y, channel = blockIdx.y, e = first + channel,
                half = circle.half();
  if (k >= system.z.n) return;
  const Exact a = system.a(k, e);
  const Products products(system, k, e);
  Exact dv[kPairs], da;
  for (int64_t j = threadIdx.x; j < half; j += kWarp) {
    const Exact zeta = nodes[j], d = resolvent(zeta, a), mirrored = resolvent(zeta, conj(a));
    const bool own_mirror = j == 0 || j == half - 1;
    const Exact* const others = dr + channel * (kPairs - 1) * half + j;
    const Exact ds[kPairs] = {gradients[channel * half + j], others[0], others[half], others[2 * half]};
    Exact dd, dd_mirrored;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const Exact v = conj(products.v[pair]), mirrored_ds = own_mirror ? Exact{} : conj(ds[pair]);
      dv[pair] = conj_multiply_add(d, ds[pair], multiply_add(mirrored, mirrored_ds, dv[pair]));  // (9)
      dd = multiply_add(v, ds[pair], dd);
      dd_mirrored = multiply_add(v, mirrored_ds, dd_mirrored);
    }
    da = conj_multiply_add(zeta * d * d, dd, multiply_add(zeta * mirrored * mirrored, dd_mirrored, da));  // (10)
  }
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) dv[pair] = warp_sum(dv[pair]);
  da = warp_sum(da);
  if (threadIdx.x != 0) return;
  const Exact b = conj(system.b.read(k, e)), c = conj(system.c.read(k, e)), f = conj(system.f.read(k, e)),
              g = conj(system.g.read(k, e));
  to.dz.write(da, k, e);
  to.dc.write(b * dv[kCB] + g * dv[kCG], k, e);
  to.db.write(c * dv[kCB] + f * dv[kFB], k, e);
  to.df.write(b * dv[kFB] + g * dv[kFG], k, e);
  to.dg.write(c * dv[kCG] + f * dv[kFG], k, e);
}

// columns (channels, nodes + 2) -> K, and from dK; both weighted as (7) says.
__global__ void __launch_bounds__(kTile* kTileRows)
    to_taps_kernel(const double* columns, Circle circle, int64_t first, int64_t channels, Rows<float> K) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t l0 = static_cast<int64_t>(blockIdx.x) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * kTile,
                l = l0 + threadIdx.x, c = c0 + threadIdx.x;
  const double weight = circle.weight(l);
  for (int i = threadIdx.y; i < kTile && c0 + i < channels; i += kTileRows)
    if (l < circle.taps) tile[i][threadIdx.x] = static_cast<float>(weight * columns[(c0 + i) * (circle.nodes + 2) + l]);
  __syncthreads();
  if (c >= channels) return;
  for (int i = threadIdx.y; i < kTile && l0 + i < circle.taps; i += kTileRows)
    K[l0 + i][first + c] = tile[threadIdx.x][i];
}
__global__ void __launch_bounds__(kTile* kTileRows)
    from_taps_kernel(Rows<const float> dK, Circle circle, int64_t first, int64_t channels, double* columns) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t l0 = static_cast<int64_t>(blockIdx.x) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * kTile,
                l = l0 + threadIdx.x, c = c0 + threadIdx.x;
  for (int i = threadIdx.y; i < kTile; i += kTileRows)
    tile[i][threadIdx.x] = c < channels && l0 + i < circle.taps ? dK[l0 + i][first + c] : 0.0f;
  __syncthreads();
  if (l >= circle.nodes + 2) return;
  const double weight = l < circle.taps ? circle.weight(l) : 0;
  for (int i = threadIdx.y; i < kTile && c0 + i < channels; i += kTileRows)
    columns[(c0 + i) * (circle.nodes + 2) + l] = weight * tile[threadIdx.x][i];
}

Exact* numbers(const Tensor& tensor) { return reinterpret_cast<Exact*>(elements<double>(tensor)); }

Tensor nodes_of(const Circle& circle, const Device& device, Stream stream) {
  const Tensor zeta = Tensor::empty({circle.half(), 2}, DType::f64, device);
  launch("ssm_kernel", nodes_kernel, dim3(static_cast<unsigned>(divide_up(circle.half(), kThreads))), dim3(kThreads),
         stream, circle, numbers(zeta));
  return zeta;
}

// Channels that are worked on at once, when each holds `copies` transforms.
int64_t channels_of(const Circle& circle, int64_t e, int64_t copies) {
  const int64_t column = (circle.nodes + 2) * bytes_of(DType::f64) * copies;
  return std::min(e, std::max<int64_t>(kTile, kPieceBytes / column / kTile * kTile));
}

dim3 node_grid(const Circle& circle, int64_t channels) {
  return dim3(static_cast<unsigned>(divide_up(circle.half(), kThreads)), static_cast<unsigned>(channels));
}
dim3 tiles(int64_t taps, int64_t channels) {
  return dim3(static_cast<unsigned>(divide_up(taps, kTile)), static_cast<unsigned>(divide_up(channels, kTile)));
}

}  // namespace

void cauchy_forward(const SsmKernelForward& args, Stream stream) {
  const Circle circle(args.K.size(0));
  const Device device = args.K.device();
  const int64_t e = args.K.size(1), most = channels_of(circle, e, 1);
  const Tensor zeta = nodes_of(circle, device, stream);
  const Tensor all = Tensor::empty({most, circle.nodes + 2}, DType::f64, device);
  for (int64_t first = 0; first < e; first += most) {
    const int64_t channels = std::min(most, e - first);
    const Tensor columns = all.rows(0, channels);
    launch("ssm_kernel", transform_kernel, node_grid(circle, channels), dim3(kThreads), stream, System(args), circle,
           numbers(zeta), first, numbers(columns));
    inverse_fourier_transform(columns, stream);
    launch("ssm_kernel", to_taps_kernel, tiles(circle.taps, channels), dim3(kTile, kTileRows), stream,
           elements<const double>(columns), circle, first, channels, rows<float>(args.K));
  }
}

void cauchy_backward(const SsmKernelBackward& args, Stream stream) {
  const Circle circle(args.dK.size(0));
  const Device device = args.dK.device();
  const int64_t e = args.dK.size(1), n = args.z.size(1), most = channels_of(circle, e, kPairs);
  if (n == 0) return;
  const Tensor zeta = nodes_of(circle, device, stream);
  const Tensor all = Tensor::empty({most, circle.nodes + 2}, DType::f64, device),
               dr = Tensor::empty({most, kPairs - 1, circle.half(), 2}, DType::f64, device);
  for (int64_t first = 0; first < e; first += most) {
    const int64_t channels = std::min(most, e - first);
    const Tensor columns = all.rows(0, channels);
    launch("ssm_kernel", from_taps_kernel, tiles(circle.nodes + 2, channels), dim3(kTile, kTileRows), stream,
           rows<const float>(args.dK), circle, first, channels, elements<double>(columns));
    fourier_transform(columns, stream);
    launch("ssm_kernel", transform_backward_kernel, node_grid(circle, channels), dim3(kThreads), stream, System(args),
           circle, numbers(zeta), first, numbers(columns), numbers(dr));
    launch(
        "ssm_kernel", modes_kernel, dim3(static_cast<unsigned>(divide_up(n, kWarps)), static_cast<unsigned>(channels)),
        dim3(kWarp, kWarps), stream, System(args), circle, numbers(zeta), first, numbers(columns), numbers(dr),
        Gradients{ModeTable(args.dz), ModeTable(args.db), ModeTable(args.dc), ModeTable(args.df), ModeTable(args.dg)});
  }
}

}  // namespace ssm::cuda
