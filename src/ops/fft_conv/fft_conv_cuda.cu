// fft_conv on a GPU: rows of tokens become padded columns of channels, cuFFT transforms them in place, a kernel
// multiplies, and back. Channels and sequences are taken in pieces that the second-level cache holds from one kernel to
// the next. Sequences whose padded lengths are equal go together. Equations: README.md.
#include <algorithm>
#include <map>
#include <vector>

#include "core/cuda_kernel.cuh"
#include "ops/complex.cuh"
#include "ops/fft_conv/fft_conv.h"
#include "ops/fft_conv/fourier.h"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

using Number = Complex<float>;
constexpr int kTile = 32, kTileRows = 8;  // transposed at once: tokens by channels; threads' y
constexpr int kMostSequences = 64;        // of a piece: they are arguments of its kernels
// Of transforms that a piece holds: enough to fill a GPU with every kernel (README.md has the times of less).
constexpr int64_t kPieceBytes = int64_t{256} << 20;

// Some sequences of one padded length: rows [begin, begin + length) of the packed tensors.
struct Pieces {
  int64_t begin[kMostSequences], length[kMostSequences];
  int count = 0;
};

// columns (sequences, channels, size + 2): (t, e) rows of `channels` from `first` on, then zeros.
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    gather_kernel(Rows<const T> from, Pieces pieces, int64_t first, int64_t channels, int64_t width, float* columns) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t t0 = static_cast<int64_t>(blockIdx.x) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t begin = pieces.begin[blockIdx.z], length = pieces.length[blockIdx.z];
  if (t0 < length) {
    const int64_t c = c0 + threadIdx.x;
    for (int i = threadIdx.y; i < kTile; i += kTileRows)
      tile[i][threadIdx.x] = c < channels && t0 + i < length ? to_float(from[begin + t0 + i][first + c]) : 0.0f;
    __syncthreads();
  }
  const int64_t t = t0 + threadIdx.x;
  if (t >= width) return;
  float* const to = columns + blockIdx.z * channels * width;
  for (int i = threadIdx.y; i < kTile && c0 + i < channels; i += kTileRows)
    to[(c0 + i) * width + t] = t0 < length ? tile[threadIdx.x][i] : 0.0f;
}

// The first rows of the columns go back, with D times `skip` where there is one.
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    scatter_kernel(const float* columns, Pieces pieces, int64_t first, int64_t channels, int64_t width, const float* D,
                   Rows<const T> skip, Rows<T> to) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t t0 = static_cast<int64_t>(blockIdx.x) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t begin = pieces.begin[blockIdx.z], length = pieces.length[blockIdx.z], t = t0 + threadIdx.x;
  if (t0 >= length) return;
  const float* const from = columns + blockIdx.z * channels * width;
  for (int i = threadIdx.y; i < kTile && c0 + i < channels; i += kTileRows)
    tile[i][threadIdx.x] = t < length ? from[(c0 + i) * width + t] : 0.0f;
  __syncthreads();
  const int64_t c = c0 + threadIdx.x;
  if (c >= channels) return;
  const float scale = D ? D[first + c] : 0.0f;
  for (int i = threadIdx.y; i < kTile && t0 + i < length; i += kTileRows) {
    const int64_t row = begin + t0 + i;
    float value = tile[threadIdx.x][i];
    if (D) value = fmaf(scale, to_float(skip[row][first + c]), value);
    to[row][first + c] = from_float<T>(value);
  }
}

// As scatter, added to dK, which several pieces reach in turn.
__global__ void __launch_bounds__(kTile* kTileRows) add_taps_kernel(const float* columns, int64_t taps, int64_t first,
                                                                    int64_t channels, int64_t width, Rows<float> dK) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t t0 = static_cast<int64_t>(blockIdx.x) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * kTile,
                t = t0 + threadIdx.x, c = c0 + threadIdx.x;
  for (int i = threadIdx.y; i < kTile && c0 + i < channels; i += kTileRows)
    tile[i][threadIdx.x] = t < taps ? columns[(c0 + i) * width + t] : 0.0f;
  __syncthreads();
  if (c >= channels) return;
  for (int i = threadIdx.y; i < kTile && t0 + i < taps; i += kTileRows) dK[t0 + i][first + c] += tile[threadIdx.x][i];
}

constexpr int kThreads = 256;

// x (sequences, channels, frequencies) *= kernel (channels, frequencies) / size.
__global__ void __launch_bounds__(kThreads)
    multiply_kernel(Number* x, const Number* kernel, int sequences, int64_t each, float scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= each) return;
  const Number k = scale * kernel[i];
  for (int s = 0; s < sequences; ++s) x[s * each + i] = x[s * each + i] * k;  // (1)
}

// The transforms of u and dy, of K and of dK's sum so far; scaled by 1 / size.
__global__ void __launch_bounds__(kThreads)
    multiply_backward_kernel(const Number* x, Number* seed, const Number* kernel, Number* dkernel, bool goes_on,
                             int sequences, int64_t each, float scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= each) return;
  const Number k = scale * conj(kernel[i]);
  Number sum = goes_on ? dkernel[i] : Number{};
  for (int s = 0; s < sequences; ++s) {
    const Number dy = seed[s * each + i];
    if (dkernel) sum = multiply_add(scale * conj(x[s * each + i]), dy, sum);  // (3)
    seed[s * each + i] = k * dy;                                              // (2)
  }
  if (dkernel) dkernel[i] = sum;
}

// partial (stripes, e): sums of u dy over a stripe of rows, for (4).
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    dot_kernel(Rows<const T> u, Rows<const T> dy, int64_t t, int64_t e, int64_t stripe, float* partial) {
  __shared__ float sums[kTileRows][kTile];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x, begin = blockIdx.y * stripe;
  float sum = 0;
  if (c < e)
    for (int64_t row = begin + threadIdx.y; row < min(t, begin + stripe); row += kTileRows)
      sum = fmaf(to_float(u[row][c]), to_float(dy[row][c]), sum);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= e) return;
  for (int y = 1; y < kTileRows; ++y) sum += sums[y][threadIdx.x];
  partial[blockIdx.y * e + c] = sum;
}

void sum_products(const Tensor& u, const Tensor& dy, const Tensor& dD, Stream stream) {
  const int64_t t = u.size(0), e = u.size(1), lanes = divide_up(e, kTile);
  const int64_t stripes =
      std::clamp<int64_t>(divide_up(8 * multiprocessors(u.device()), lanes), 1, std::max<int64_t>(1, divide_up(t, 64)));
  const Tensor partial = Tensor::empty({stripes, e}, DType::f32, u.device());
  with_element(u.dtype(), "fft_conv", [&](auto element) {
    using T = decltype(element);
    launch("fft_conv", dot_kernel<T>, dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(stripes)),
           dim3(kTile, kTileRows), stream, rows<const T>(u), rows<const T>(dy), t, e, divide_up(t, stripes),
           elements<float>(partial));
  });
  sum_parts("fft_conv", partial, dD, e, {}, 0, stream);
}

// Sequences of one padded size, in pieces.
struct Group {
  int64_t size = 0, longest = 0;
  std::vector<int64_t> sequences;
};
std::vector<Group> groups_of(const Seqs& seqs) {
  std::map<int64_t, Group> groups;
  for (int64_t s = 0; s < seqs.count(); ++s) {
    const int64_t length = seqs.length(s);
    if (length == 0) continue;
    Group& group = groups[fourier_size(2 * length - 1)];
    group.size = fourier_size(2 * length - 1);
    group.longest = std::max(group.longest, length);
    group.sequences.push_back(s);
  }
  std::vector<Group> all;
  for (auto& [size, group] : groups) all.push_back(std::move(group));
  return all;
}

// What a group is worked on in: some channels of some sequences.
struct Cut {
  int64_t width, channels, sequences;

  // `copies`: transforms of a sequence's channel that are held.
  Cut(const Group& group, int64_t e, int64_t copies) : width(group.size + 2) {
    const int64_t columns = std::max<int64_t>(1, kPieceBytes / (width * bytes_of(DType::f32) * copies));
    const auto count = static_cast<int64_t>(group.sequences.size());
    sequences = std::min({count, int64_t{kMostSequences}, std::max<int64_t>(1, columns / std::min<int64_t>(e, kTile))});
    channels = std::min(e, std::max<int64_t>(kTile, columns / sequences / kTile * kTile));
  }
};
// Calls body(first channel, channels, pieces, whether they are the first of these channels, the last).
template <class Body>
void for_pieces(const Group& group, const Seqs& seqs, const Cut& cut, int64_t e, const Body& body) {
  const auto count = static_cast<int64_t>(group.sequences.size());
  for (int64_t c = 0; c < e; c += cut.channels)
    for (int64_t s = 0; s < count; s += cut.sequences) {
      Pieces pieces;
      for (int64_t i = s; i < std::min(count, s + cut.sequences); ++i, ++pieces.count) {
        const int64_t sequence = group.sequences[static_cast<size_t>(i)];
        pieces.begin[pieces.count] = seqs.offsets[static_cast<size_t>(sequence)];
        pieces.length[pieces.count] = seqs.length(sequence);
      }
      body(c, std::min(cut.channels, e - c), pieces, s == 0, s + cut.sequences >= count);
    }
}

dim3 tiles(int64_t tokens, int64_t channels, int sequences) {
  return dim3(static_cast<unsigned>(divide_up(tokens, kTile)), static_cast<unsigned>(divide_up(channels, kTile)),
              static_cast<unsigned>(sequences));
}
const dim3 kTileBlock(kTile, kTileRows);

void gather(const Tensor& from, const Pieces& pieces, int64_t first, int64_t channels, const Tensor& columns,
            Stream stream) {
  with_element(from.dtype(), "fft_conv", [&](auto element) {
    using T = decltype(element);
    launch("fft_conv", gather_kernel<T>, tiles(columns.size(1), channels, pieces.count), kTileBlock, stream,
           rows<const T>(from), pieces, first, channels, columns.size(1), elements<float>(columns));
  });
}

void scatter(const Tensor& columns, const Pieces& pieces, int64_t longest, int64_t first, int64_t channels,
             const Tensor& D, const Tensor& skip, const Tensor& to, Stream stream) {
  with_element(to.dtype(), "fft_conv", [&](auto element) {
    using T = decltype(element);
    launch("fft_conv", scatter_kernel<T>, tiles(longest, channels, pieces.count), kTileBlock, stream,
           elements<const float>(columns), pieces, first, channels, columns.size(1), elements<const float>(D),
           rows<const T>(skip), rows<T>(to));
  });
}

// The transforms of the taps that a group's sequences reach.
void transform_kernel(const Tensor& K, const Group& group, int64_t first, int64_t channels, const Tensor& columns,
                      Stream stream) {
  Pieces taps;
  taps.begin[0] = 0;
  taps.length[0] = group.longest;
  taps.count = 1;
  gather(K, taps, first, channels, columns, stream);
  fourier_transform(columns, stream);
}

dim3 blocks_of(int64_t count) { return dim3(static_cast<unsigned>(divide_up(count, kThreads))); }

Number* numbers(const Tensor& columns) { return reinterpret_cast<Number*>(elements<float>(columns)); }

}  // namespace

void fft_conv_forward(const FftConvForward& args, Stream stream) {
  const int64_t e = args.u.size(1);
  const Device device = args.u.device();
  for (const Group& group : groups_of(*args.seqs)) {
    const Cut cut(group, e, 1);
    const Tensor all_kernels = Tensor::empty({cut.channels, cut.width}, DType::f32, device),
                 all_columns = Tensor::empty({cut.sequences * cut.channels, cut.width}, DType::f32, device);
    for_pieces(
        group, *args.seqs, cut, e, [&](int64_t first, int64_t channels, const Pieces& pieces, bool begins, bool) {
          const Tensor kernel = all_kernels.rows(0, channels), columns = all_columns.rows(0, pieces.count * channels);
          if (begins) transform_kernel(args.K, group, first, channels, kernel, stream);
          gather(args.u, pieces, first, channels, columns, stream);
          fourier_transform(columns, stream);
          const int64_t each = channels * cut.width / 2;
          launch("fft_conv", multiply_kernel, blocks_of(each), dim3(kThreads), stream, numbers(columns),
                 numbers(kernel), pieces.count, each, 1 / static_cast<float>(group.size));
          inverse_fourier_transform(columns, stream);
          scatter(columns, pieces, group.longest, first, channels, args.D, args.u, args.y, stream);
        });
  }
}

void fft_conv_backward(const FftConvBackward& args, Stream stream) {
  const int64_t e = args.u.size(1);
  const Device device = args.u.device();
  if (args.dK) args.dK.fill_zero();
  if (args.dD) sum_products(args.u, args.dy, args.dD, stream);
  if (!args.du && !args.dK) return;
  for (const Group& group : groups_of(*args.seqs)) {
    const Cut cut(group, e, 2);
    const Tensor all_kernels = Tensor::empty({2 * cut.channels, cut.width}, DType::f32, device),
                 all_columns = Tensor::empty({2 * cut.sequences * cut.channels, cut.width}, DType::f32, device);
    for_pieces(
        group, *args.seqs, cut, e, [&](int64_t first, int64_t channels, const Pieces& pieces, bool begins, bool ends) {
          const int64_t count = pieces.count * channels;
          const Tensor kernel = all_kernels.rows(0, channels), both = all_columns.rows(0, 2 * count),
                       dkernel = all_kernels.rows(channels, 2 * channels), inputs = both.rows(0, count),
                       seeds = both.rows(count, 2 * count);
          if (begins) transform_kernel(args.K, group, first, channels, kernel, stream);
          gather(args.u, pieces, first, channels, inputs, stream);
          gather(args.dy, pieces, first, channels, seeds, stream);
          fourier_transform(both, stream);
          const int64_t each = channels * cut.width / 2;
          launch("fft_conv", multiply_backward_kernel, blocks_of(each), dim3(kThreads), stream, numbers(inputs),
                 numbers(seeds), numbers(kernel), args.dK ? numbers(dkernel) : nullptr, !begins, pieces.count, each,
                 1 / static_cast<float>(group.size));
          if (args.du) {
            inverse_fourier_transform(seeds, stream);
            scatter(seeds, pieces, group.longest, first, channels, args.D, args.dy, args.du, stream);
          }
          if (!args.dK || !ends) return;
          inverse_fourier_transform(dkernel, stream);
          launch("fft_conv", add_taps_kernel, tiles(group.longest, channels, 1), kTileBlock, stream,
                 elements<const float>(dkernel), group.longest, first, channels, cut.width, rows<float>(args.dK));
        });
  }
}

}  // namespace ssm::cuda
