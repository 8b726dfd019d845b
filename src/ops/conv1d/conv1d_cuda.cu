// conv1d on a GPU. The common case, four taps and rows on 16-byte boundaries, walks down (forward) or up (backward) the
// rows of one piece of a sequence with the taps' inputs in registers, several neighbouring channels a thread, so that
// each row is read once. Any other width or alignment takes one thread an element. Equations: conv1d.h, README.md.
#include "core/cuda_kernel.cuh"
#include "ops/conv1d/conv1d.h"
#include "ops/conv1d/conv1d_step.cuh"
#include "ops/sigmoid.cuh"
#include "ops/sums.cuh"

namespace ssm::cuda {
namespace {

constexpr int kTaps = 4, kCarried = kTaps - 1;
constexpr int kLanes = 32;
constexpr int kChannels = 4;  // of a thread; 8 take twice the registers, and the threads that are left wait for memory
// Rows of a piece. Each piece reads the 3 rows before it again and backward also those behind it, from the second-level
// cache as a rule; longer pieces leave too few threads at a batch of 8 x 2,048 rows.
constexpr int kForwardRows = 32, kForwardPieces = 4, kForwardBlocks = 8;     // pieces a block, blocks a multiprocessor
constexpr int kBackwardRows = 61, kBackwardPieces = 4, kBackwardBlocks = 4;  // with the 3 rows behind it 64 steps
// Groups of kTaps rows on their way from memory while one is worked on.
constexpr int kAhead = 3;

// Row of Seqs::pieces.
struct Piece {
  int64_t sequence, first, rows, index;
};

template <class T>
struct Inputs {  // X of (1)
  Rows<const T> x;
  const float* state;  // (slots, carried, e) or null
  const int64_t *offsets, *slots;
  int64_t e;
  int carried;

  __device__ const float* state_row(int64_t s, int64_t i) const { return state + (slots[s] * carried + i) * e; }
  // Row i of X^s, 0 <= i < carried + length.
  __device__ float at(int64_t s, int64_t i, int64_t c) const {
    if (i >= carried) return to_float(x[offsets[s] + i - carried][c]);
    return state ? state_row(s, i)[c] : 0.0f;
  }
};

struct Filter {
  const float *weight, *bias;  // (e, w), (e) or null
  bool silu;
};

__device__ __forceinline__ float activated(float v, bool silu) { return silu ? v * sigmoid(v) : v; }  // (3)
__device__ __forceinline__ float slope(float v, bool silu) {                                          // (5)
  if (!silu) return 1.0f;
  const float s = sigmoid(v);
  return s * fmaf(v, 1.0f - s, 1.0f);
}

// The taps and biases of kChannels neighbours.
struct FilterRegisters {
  float weight[kChannels][kTaps], bias[kChannels];

  __device__ FilterRegisters(const Filter& filter, int64_t c) {
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      load_floats(filter.weight + (c + j) * kTaps, weight[j]);
      bias[j] = filter.bias ? filter.bias[c + j] : 0.0f;
    }
  }
  // v of (2); the input of tap k is window[(oldest + k) % kTaps], or counted downwards for kStep = -1.
  template <int kStep>
  __device__ __forceinline__ float preactivation(const float (&window)[kTaps][kChannels], int oldest, int j) const {
    float v = bias[j];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) v = fmaf(weight[j][k], window[(oldest + kStep * k + kTaps) % kTaps][j], v);
    return v;
  }
};

template <class T>
__device__ __forceinline__ void widen(const Pack<T, kChannels>& pack, float (&to)[kChannels]) {
#pragma unroll
  for (int j = 0; j < kChannels; ++j) to[j] = to_float(pack.value[j]);
}

// A thread's own window on the rows to come, in shared memory: no register waits for them, and since nobody else looks
// into it there is no barrier. kStreams rows are read at each step; groups of kTaps steps are ordered and awaited.
template <class T, int kStreams, int kPieces>
class Ahead {
 public:
  using Row = Pack<T, kChannels>;
  static constexpr int kGroups = kAhead + 1, kRows = kGroups * kTaps * kStreams;
  static constexpr size_t kBytes = size_t{kPieces} * kRows * kLanes * sizeof(Row);

  __device__ explicit Ahead(void* shared)
      : rows_(static_cast<Row*>(shared) + threadIdx.y * kRows * kLanes + threadIdx.x) {}
  __device__ __forceinline__ void order(int group, int u, int stream, const T* from) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(row(group, u, stream)));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(static_cast<int>(sizeof(Row)))
                 : "memory");
  }
  __device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // Until all groups but the last kAhead that were ended are there.
  __device__ __forceinline__ void await() { asm volatile("cp.async.wait_group %0;" ::"n"(kAhead) : "memory"); }
  __device__ __forceinline__ void read(int group, int u, int stream, float (&to)[kChannels]) const {
    widen(*row(group, u, stream), to);
  }

 private:
  __device__ __forceinline__ Row* row(int group, int u, int stream) const {
    return rows_ + ((group % kGroups * kTaps + u) * kStreams + stream) * kLanes;
  }
  Row* rows_;
};

// The kCarried rows before `piece` into window[0 .. kCarried).
template <class T>
__device__ __forceinline__ void load_carried(const Inputs<T>& in, const Piece& piece, int64_t c,
                                             float (&window)[kTaps][kChannels]) {
#pragma unroll
  for (int i = 0; i < kCarried; ++i) {
    if (piece.index > 0) {
      load_floats(in.x[piece.first - kCarried + i] + c, window[i]);
    } else if (in.state) {
      load_floats(in.state_row(piece.sequence, i) + c, window[i]);
    } else {
#pragma unroll
      for (int j = 0; j < kChannels; ++j) window[i][j] = 0;
    }
  }
}

// One thread walks one piece. With a new state the pieces are whole sequences.
template <class T, bool kSilu>
__global__ void __launch_bounds__(kLanes* kForwardPieces, kForwardBlocks)
    forward_kernel(Inputs<T> in, Filter filter, Rows<T> y, const Piece* pieces, int64_t piece_count,
                   unsigned blocks_across, float* new_state) {
  extern __shared__ __align__(16) unsigned char shared[];
  let_next_kernel_start();
  const int64_t c = (blockIdx.x % blocks_across * kLanes + threadIdx.x) * kChannels;
  const int64_t number = blockIdx.x / blocks_across * kForwardPieces + threadIdx.y;
  if (c >= in.e || number >= piece_count) return wait_for_previous_kernels();
  const FilterRegisters taps(filter, c);  // the same in every step: read while the kernel before ends
  wait_for_previous_kernels();
  const Piece piece = pieces[number];
  const int length = static_cast<int>(piece.rows);
  const T* x = in.x[piece.first] + c;
  T* to = y[piece.first] + c;
  Ahead<T, 1, kForwardPieces> ahead(shared);
  const auto order = [&](int group) {
    const int row = group * kTaps;
    const T* from = x + row * in.x.stride;
    if (row + kTaps <= length) {
#pragma unroll
      for (int u = 0; u < kTaps; ++u, from += in.x.stride) ahead.order(group, u, 0, from);
    } else {
      for (int u = 0; row + u < length; ++u, from += in.x.stride) ahead.order(group, u, 0, from);
    }
    ahead.end_group();
  };
#pragma unroll
  for (int group = 0; group < kAhead; ++group) order(group);
  float window[kTaps][kChannels];  // row r of the piece is in window[(r + kCarried) % kTaps]
  load_carried(in, piece, c, window);

  for (int group = 0; group * kTaps < length; ++group, to += kTaps * y.stride) {
    order(group + kAhead);
    ahead.await();
#pragma unroll
    for (int u = 0; u < kTaps; ++u) {
      ahead.read(group, u, 0, window[(u + kCarried) % kTaps]);
      float result[kChannels];
#pragma unroll
      for (int j = 0; j < kChannels; ++j) result[j] = activated(taps.preactivation<1>(window, u, j), kSilu);
      if (group * kTaps + u < length) store_floats(to + u * y.stride, result);
    }
  }
  if (!new_state) return;
  // (4), read again from where it was: upwards, as below.
  const int64_t slot = in.slots[piece.sequence] * kCarried * in.e + c;
#pragma unroll
  for (int i = 0; i < kCarried; ++i) {
    const int row = length - kCarried + i;
    float input[kChannels] = {};
    if (row >= 0)
      load_floats(x + row * in.x.stride, input);
    else if (in.state)
      load_floats(in.state + slot + (length + i) * in.e, input);
    store_floats(new_state + slot + i * in.e, input);
  }
}

// (4) for calls in which no thread sees a whole sequence: one thread a sequence and channel. Upwards, so that a row is
// read before it is written when the state advances in place.
template <class T>
__global__ void state_kernel(Inputs<T> in, float* new_state, int64_t sequences) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= sequences * in.e) return;
  const int64_t s = i / in.e, c = i % in.e, length = in.offsets[s + 1] - in.offsets[s];
  for (int64_t row = 0; row < in.carried; ++row)
    new_state[(in.slots[s] * in.carried + row) * in.e + c] = in.at(s, length + row, c);
}

template <class T>
__device__ float any_preactivation(const Inputs<T>& in, const Filter& filter, int64_t s, int64_t p, int64_t c) {
  const int w = in.carried + 1;
  float v = filter.bias ? filter.bias[c] : 0.0f;
  for (int k = 0; k < w; ++k) v = fmaf(filter.weight[c * w + k], in.at(s, p + k, c), v);
  return v;
}

// One thread an element of a piece of one row.
template <class T>
__global__ void any_forward_kernel(Inputs<T> in, Filter filter, Rows<T> y, const Piece* rows, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count * in.e) return;
  const Piece row = rows[i / in.e];
  const int64_t c = i % in.e;
  y[row.first][c] = from_float<T>(activated(any_preactivation(in, filter, row.sequence, row.index, c), filter.silu));
}

template <class T>
struct Gradients {
  Rows<const T> dy;
  const float* dnew_state;  // may be null, as the outputs
  Rows<T> dx;
  float* partial;  // (blocks of pieces, e w + e): sums of (6), then of (7)
};

// What a thread of backward_kernel knows. Row p is in place (top - p) % kTaps of window and g, p counted from the
// piece's first row.
template <class T, bool kSilu>
struct BackwardWalk {
  const T *x, *dy;  // at the piece's first row
  T* dx;
  int x_stride, dy_stride, dx_stride;  // 32 bits: one instruction multiplies them into an address
  const float *state, *dnew_state;     // of this sequence's slot, at c
  int64_t e;
  int begin, last, end;  // the sequence's first row, the rows of the piece, the sequence's end
  FilterRegisters taps;
  Ahead<T, 2, kBackwardPieces> ahead;
  float window[kTaps][kChannels], g[kTaps][kChannels], dweight[kTaps][kChannels], dbias[kChannels];

  // Where row p of x is; of a row outside the sequence another one, whose value is replaced (x) or not used (dy) later.
  __device__ __forceinline__ const T* x_row(int p) const {
    return x + static_cast<int64_t>(min(max(p, begin), end - 1)) * x_stride;
  }
  // The rows of group `group` of the walk: those of g and, of x, the row of each one's first tap.
  __device__ __forceinline__ void order(int group, int top) {
    const int high = top - group * kTaps, low = high - (kTaps - 1) - kCarried;
    if (high >= 0 && high < end && low >= begin) {
      const T *from_x = x + static_cast<int64_t>(high - kCarried) * x_stride,
              *from_dy = dy + static_cast<int64_t>(high) * dy_stride;
#pragma unroll
      for (int u = 0; u < kTaps; ++u, from_x -= x_stride, from_dy -= dy_stride) {
        ahead.order(group, u, 0, from_x);
        ahead.order(group, u, 1, from_dy);
      }
    } else if (high >= 0) {
      for (int u = 0; u < kTaps; ++u) {
        ahead.order(group, u, 0, x_row(high - u - kCarried));
        ahead.order(group, u, 1, dy + static_cast<int64_t>(min(high - u, end - 1)) * dy_stride);
      }
    }
    ahead.end_group();
  }
  // The input of row p, when what lies at x_row(p) is in `row`.
  __device__ __forceinline__ void replace_outside(int p, float (&row)[kChannels]) const {
    if (p >= begin) return;
#pragma unroll
    for (int j = 0; j < kChannels; ++j) row[j] = 0;
    if (state) load_floats(state + (p - begin + kCarried) * e, row);
  }

  // Rows high, high - 1 ... of kTaps. Inner ones have all their neighbours in this piece's sequence.
  template <bool kInner>
  __device__ __forceinline__ void step(int group, int high) {
#pragma unroll
    for (int u = 0; u < kTaps; ++u) {
      const int p = high - u;
      ahead.read(group, u, 0, window[(u + kCarried) % kTaps]);
      if (!kInner) replace_outside(p - kCarried, window[(u + kCarried) % kTaps]);
      ahead.read(group, u, 1, g[u]);
      const bool mine = kInner || p < last;
      float result[kChannels];
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        g[u][j] *= slope(taps.preactivation<-1>(window, u + kCarried, j), kSilu);
        if (!kInner && p >= end) g[u][j] = 0;
        if (mine) {
          dbias[j] += g[u][j];  // (7)
#pragma unroll
          for (int k = 0; k < kTaps; ++k)  // (6)
            dweight[k][j] = fmaf(g[u][j], window[(u + kCarried - k) % kTaps][j], dweight[k][j]);
        }
        result[j] = 0;
#pragma unroll
        for (int k = 0; k < kTaps; ++k)  // (8)
          result[j] = fmaf(taps.weight[j][k], g[(u + kTaps - kCarried + k) % kTaps][j], result[j]);
      }
      if (!mine || !dx) continue;
      if (!kInner && dnew_state && p + kCarried >= end) {
        float more[kChannels];
        load_floats(dnew_state + (p + kCarried - end) * e, more);
#pragma unroll
        for (int j = 0; j < kChannels; ++j) result[j] += more[j];
      }
      store_floats(dx + static_cast<int64_t>(p) * dx_stride, result);
    }
  }

  __device__ __forceinline__ void run() {
    const int top = (last + kCarried + kTaps - 1) / kTaps * kTaps - 1;
#pragma unroll
    for (int group = 0; group < kAhead; ++group) order(group, top);
#pragma unroll
    for (int u = 0; u < kCarried; ++u) {
      load_floats(x_row(top - u), window[u]);
      replace_outside(top - u, window[u]);
    }
    for (int group = 0, high = top; high >= 0; ++group, high -= kTaps) {
      order(group + kAhead, top);
      ahead.await();
      if (high < last && high + kCarried < end && high - (kTaps - 1) - kCarried >= begin)
        step<true>(group, high);
      else
        step<false>(group, high);
    }
  }
};

// One thread walks one piece from its last row to its first, begun 3 rows behind it, whose g reach into it.
template <class T, bool kSilu>
__global__ void __launch_bounds__(kLanes* kBackwardPieces, kBackwardBlocks)
    backward_kernel(Inputs<T> in, Filter filter, Gradients<T> out, const Piece* pieces, int64_t piece_count,
                    unsigned blocks_across) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t across = blockIdx.x % blocks_across, down = blockIdx.x / blocks_across;
  const int64_t c = (across * kLanes + threadIdx.x) * kChannels;
  const int64_t number = down * kBackwardPieces + threadIdx.y;
  float dweight[kTaps][kChannels] = {}, dbias[kChannels] = {};
  if (c < in.e && number < piece_count) {
    const Piece piece = pieces[number];
    const int64_t first = piece.first, slot = in.slots[piece.sequence] * kCarried * in.e + c;
    BackwardWalk<T, kSilu> walk{
        .x = in.x[first] + c,
        .dy = out.dy[first] + c,
        .dx = out.dx ? out.dx[first] + c : nullptr,
        .x_stride = static_cast<int>(in.x.stride),
        .dy_stride = static_cast<int>(out.dy.stride),
        .dx_stride = static_cast<int>(out.dx.stride),
        .state = in.state ? in.state + slot : nullptr,
        .dnew_state = out.dnew_state ? out.dnew_state + slot : nullptr,
        .e = in.e,
        // No row that this piece needs is as far away as the bound.
        .begin = piece.index > 0 ? -kBackwardRows : 0,
        .last = static_cast<int>(piece.rows),
        .end = static_cast<int>(min(in.offsets[piece.sequence + 1] - first, static_cast<int64_t>(2 * kBackwardRows))),
        .taps = FilterRegisters(filter, c),
        .ahead = Ahead<T, 2, kBackwardPieces>(shared),
        .window = {},
        .g = {},
        .dweight = {},
        .dbias = {}};
    walk.run();
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      dbias[j] = walk.dbias[j];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) dweight[k][j] = walk.dweight[k][j];
    }
  }
  if (!out.partial) return;

  // The pieces of the block, in order.
  using Sums = float[(kTaps + 1) * kChannels][kLanes];
  static_assert(kBackwardPieces * sizeof(Sums) <= Ahead<T, 2, kBackwardPieces>::kBytes);
  Sums* sums = reinterpret_cast<Sums*>(shared);
  __syncthreads();  // until all have read what they ordered
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) sums[threadIdx.y][k * kChannels + j][threadIdx.x] = dweight[k][j];
    sums[threadIdx.y][kTaps * kChannels + j][threadIdx.x] = dbias[j];
  }
  __syncthreads();
  if (c >= in.e) return;
  float* to = out.partial + down * (kTaps + 1) * in.e;
  for (int item = threadIdx.y; item < (kTaps + 1) * kChannels; item += kBackwardPieces) {
    float total = 0;
    for (int y = 0; y < kBackwardPieces; ++y) total += sums[y][item][threadIdx.x];
    const int64_t channel = c + item % kChannels;
    to[item < kTaps * kChannels ? channel * kTaps + item / kChannels : kTaps * in.e + channel] = total;
  }
}

// (5) of any width: one thread an element.
template <class T>
__global__ void any_slope_kernel(Inputs<T> in, Filter filter, Rows<const T> dy, float* g, const Piece* rows,
                                 int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count * in.e) return;
  const Piece row = rows[i / in.e];
  const int64_t c = i % in.e;
  g[i] = to_float(dy[row.first][c]) * slope(any_preactivation(in, filter, row.sequence, row.index, c), filter.silu);
}

// Row i of (8) from the g of its sequence.
template <class T>
__device__ float any_dinput(const Inputs<T>& in, const float* weight, const float* g, const float* dnew_state,
                            int64_t s, int64_t i, int64_t c) {
  const int w = in.carried + 1;
  const int64_t begin = in.offsets[s], length = in.offsets[s + 1] - begin;
  float sum = 0;
  for (int k = 0; k < w; ++k)
    if (0 <= i - k && i - k < length) sum = fmaf(weight[c * w + k], g[(begin + i - k) * in.e + c], sum);
  if (i >= length && dnew_state) sum += dnew_state[(in.slots[s] * in.carried + i - length) * in.e + c];
  return sum;
}

template <class T>
__global__ void any_dx_kernel(Inputs<T> in, const float* weight, const float* g, const float* dnew_state, Rows<T> dx,
                              const Piece* rows, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count * in.e) return;
  const Piece row = rows[i / in.e];
  const int64_t c = i % in.e;
  dx[row.first][c] = from_float<T>(any_dinput(in, weight, g, dnew_state, row.sequence, row.index + in.carried, c));
}

// (6) and (7) over kAnyRows rows: one thread a tap (or the bias) and channel.
constexpr int64_t kAnyRows = 64;
template <class T>
__global__ void any_dweight_kernel(Inputs<T> in, const float* g, float* partial, const Piece* rows, int64_t count) {
  const int w = in.carried + 1;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, size = (w + 1) * in.e;
  const int64_t blocks = (count + kAnyRows - 1) / kAnyRows;
  if (i >= blocks * size) return;
  const int64_t block = i / size, in_block = i % size;
  const bool bias = in_block >= w * in.e;
  const int64_t c = bias ? in_block - w * in.e : in_block / w, k = bias ? 0 : in_block % w;
  float sum = 0;
  for (int64_t t = block * kAnyRows; t < count && t < (block + 1) * kAnyRows; ++t)
    sum = fmaf(g[t * in.e + c], bias ? 1.0f : in.at(rows[t].sequence, rows[t].index + k, c), sum);
  partial[i] = sum;
}

// The first carried rows of (8), the gradient of the incoming state, of any width: one thread a sequence and channel.
// It computes g of the first rows again.
template <class T>
__global__ void dstate_kernel(Inputs<T> in, Filter filter, Rows<const T> dy, const float* dnew_state, float* dstate,
                              int64_t sequences) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= sequences * in.e) return;
  const int w = in.carried + 1;
  const int64_t s = at / in.e, c = at % in.e, begin = in.offsets[s], length = in.offsets[s + 1] - begin;
  if (length == 0) return;  // copied from dnew_state already
  for (int64_t i = 0; i < in.carried; ++i) {
    float sum = 0;
    for (int k = 0; k < w; ++k) {
      const int64_t p = i - k;
      if (p < 0 || p >= length) continue;
      const float g = to_float(dy[begin + p][c]) * slope(any_preactivation(in, filter, s, p, c), filter.silu);
      sum = fmaf(filter.weight[c * w + k], g, sum);
    }
    if (i >= length && dnew_state) sum += dnew_state[(in.slots[s] * in.carried + i - length) * in.e + c];
    dstate[(in.slots[s] * in.carried + i) * in.e + c] = sum;
  }
}

// Whether the rows suit the kernels that walk pieces.
bool walkable(const Tensor& tensor) {
  return !tensor || (aligned(tensor, kChannels * bytes_of(tensor.dtype())) && tensor.stride(0) < (int64_t{1} << 31));
}

const Piece* pieces_of(const Tensor& table) {
  static_assert(sizeof(Piece) == 4 * sizeof(int64_t));
  return reinterpret_cast<const Piece*>(elements<const int64_t>(table));
}

constexpr int kThreads = 256;
dim3 blocks_for(int64_t threads) { return dim3(static_cast<unsigned>(divide_up(threads, kThreads))); }

template <class T, class Args>
Inputs<T> inputs_of(const Args& args) {
  const Seqs::Tables& tables = args.seqs.tables(args.x.device());
  return {.x = rows<const T>(args.x),
          .state = elements<const float>(args.state),
          .offsets = elements<const int64_t>(tables.offsets),
          .slots = elements<const int64_t>(tables.slots),
          .e = args.x.size(1),
          .carried = static_cast<int>(args.weight.size(1)) - 1};
}

template <class Args>
Filter filter_of(const Args& args) {
  return {.weight = elements<const float>(args.weight),
          .bias = elements<const float>(args.bias),
          .silu = args.activation == Activation::silu};
}

template <class T>
void forward(const Conv1dForward& args, Stream stream) {
  constexpr const char* kName = "conv1d";
  const Device& device = args.x.device();
  const auto in = inputs_of<T>(args);
  const Filter filter = filter_of(args);
  const auto y = rows<T>(args.y);
  float* new_state = elements<float>(args.new_state);
  const int64_t e = in.e, sequences = args.seqs.count();
  if (in.carried == kCarried && e % kChannels == 0 && walkable(args.x) && walkable(args.y) &&
      aligned(args.weight, 16) && aligned(args.state, 16)) {
    if (sequences == args.seqs.tokens() && args.seqs.longest == 1 && sequences < 65536)
      return conv1d_step(args, stream);
    // Then each sequence is one piece, whose thread has the last rows at hand; an empty one keeps its state.
    const bool whole = args.seqs.longest <= kForwardRows;
    const Tensor& pieces = args.seqs.pieces(device, kForwardRows);
    const int64_t count = pieces.size(0), across = divide_up(e, kLanes * kChannels);
    const dim3 grid(static_cast<unsigned>(across * divide_up(count, kForwardPieces)));
    launch(kName, filter.silu ? forward_kernel<T, true> : forward_kernel<T, false>, grid, dim3(kLanes, kForwardPieces),
           LaunchOptions{.shared = Ahead<T, 1, kForwardPieces>::kBytes, .early = true}, stream, in, filter, y,
           pieces_of(pieces), count, across, whole ? new_state : nullptr);
    if (whole) return;
  } else {
    const Tensor& pieces = args.seqs.pieces(device, 1);
    launch(kName, any_forward_kernel<T>, blocks_for(args.x.count()), kThreads, stream, in, filter, y, pieces_of(pieces),
           pieces.size(0));
  }
  if (new_state) launch(kName, state_kernel<T>, blocks_for(sequences * e), kThreads, stream, in, new_state, sequences);
}

template <class T>
void backward(const Conv1dBackward& args, Stream stream) {
  constexpr const char* kName = "conv1d backward";
  const Device& device = args.x.device();
  const auto in = inputs_of<T>(args);
  const Filter filter = filter_of(args);
  const auto dy = rows<const T>(args.dy);
  const auto dx = rows<T>(args.dx);
  const float* dnew_state = elements<const float>(args.dnew_state);
  const int64_t e = in.e, sequences = args.seqs.count();
  const int w = in.carried + 1;
  const bool sums = args.dweight || args.dbias;
  Tensor partial;
  if (w == kTaps && e % kChannels == 0 && walkable(args.x) && walkable(args.dy) && walkable(args.dx) &&
      aligned(args.weight, 16) && aligned(args.state, 16)) {
    const Tensor& pieces = args.seqs.pieces(device, kBackwardRows);
    const int64_t count = pieces.size(0), across = divide_up(e, kLanes * kChannels),
                  down = divide_up(count, kBackwardPieces);
    if (sums) partial = Tensor::empty({down, (w + 1) * e}, DType::f32, device);
    const Gradients<T> out{.dy = dy, .dnew_state = dnew_state, .dx = dx, .partial = elements<float>(partial)};
    launch(kName, filter.silu ? backward_kernel<T, true> : backward_kernel<T, false>,
           dim3(static_cast<unsigned>(across * down)), dim3(kLanes, kBackwardPieces),
           LaunchOptions{.shared = Ahead<T, 2, kBackwardPieces>::kBytes}, stream, in, filter, out, pieces_of(pieces),
           count, across);
  } else {
    const Tensor& table = args.seqs.pieces(device, 1);
    const Piece* each = pieces_of(table);
    const int64_t count = table.size(0), down = divide_up(count, kAnyRows);
    const Tensor g = Tensor::empty(args.x.shape(), DType::f32, device);
    launch(kName, any_slope_kernel<T>, blocks_for(count * e), kThreads, stream, in, filter, dy, elements<float>(g),
           each, count);
    if (dx)
      launch(kName, any_dx_kernel<T>, blocks_for(count * e), kThreads, stream, in, filter.weight, elements<float>(g),
             dnew_state, dx, each, count);
    if (sums) {
      partial = Tensor::empty({down, (w + 1) * e}, DType::f32, device);
      launch(kName, any_dweight_kernel<T>, blocks_for(partial.count()), kThreads, stream, in, elements<float>(g),
             elements<float>(partial), each, count);
    }
  }
  if (sums) sum_parts(kName, partial, args.dweight, e * w, args.dbias, e, stream);
  if (!args.dstate) return;
  args.dnew_state ? args.dstate.copy_from(args.dnew_state) : args.dstate.fill_zero();  // other slots
  launch(kName, dstate_kernel<T>, blocks_for(sequences * e), kThreads, stream, in, filter, dy, dnew_state,
         elements<float>(args.dstate), sequences);
}

}  // namespace

void conv1d_forward(const Conv1dForward& args, Stream stream) {
  with_element(args.x.dtype(), "conv1d", [&]<class T>(T) { forward<T>(args, stream); });
}

void conv1d_backward(const Conv1dBackward& args, Stream stream) {
  with_element(args.x.dtype(), "conv1d", [&]<class T>(T) { backward<T>(args, stream); });
}

}  // namespace ssm::cuda
