// The helpers of a block of the selective scan forward: they load, make Delta (9) and Delta x, and finish y (12).
#pragma once

#include "ops/selective_scan/selective_scan_block.cuh"

namespace ssm::cuda {

// Neighbouring elements, 16 bytes of them, as they lie in memory, in whole registers: as elements the compiler would
// give each half of a register one of its own.
template <class T>
struct alignas(16) Strip {
  static constexpr int kCount = 16 / sizeof(T);
  uint32_t word[4];

  __device__ __forceinline__ static Strip filled(float value) {
    float all[kCount];
#pragma unroll
    for (float& one : all) one = value;
    Strip strip;
    strip.pack(all);
    return strip;
  }
  __device__ __forceinline__ void unpack(float (&to)[kCount]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        to[i] = __uint_as_float(word[i]);
      } else if constexpr (std::is_same_v<T, bf16>) {
        to[2 * i] = __uint_as_float(word[i] << 16);
        to[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
      } else {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(word[i]));
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
      }
    }
  }
  __device__ __forceinline__ void pack(const float (&from)[kCount]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>)
        word[i] = __float_as_uint(from[i]);
      else if constexpr (std::is_same_v<T, bf16>)
        reinterpret_cast<__nv_bfloat162&>(word[i]) = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
      else
        reinterpret_cast<__half2&>(word[i]) = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
    }
  }
  __device__ __forceinline__ T* elements() { return reinterpret_cast<T*>(word); }
};

template <class S, ScanOutput kOutput, bool kAligned>
struct Helper {
  using T = typename S::Element;
  static constexpr int kItems = S::kItems, kRows = S::kRows, kStrip = S::kStrip;
  static constexpr int kMatrixRow = S::kDepth / kStrip, kMatrixStrips = 2 * S::kTile * kMatrixRow,
                       kMatrixItems = (kMatrixStrips + S::kHelpers - 1) / S::kHelpers;
  // tf32 cuts the lower 13 bits of h off: 2^-11 of its last kept bit's value on average, which is 0.72 2^-11 of the
  // number. Giving that back halves the error.
  static constexpr float kCut = std::is_same_v<T, bf16> ? 1.0f - 0.7213f / 2048 : 1.0f;
  static constexpr Accuracy kAccuracy = std::is_same_v<T, bf16> ? Accuracy::bf16 : Accuracy::full;

  const ScanArguments<T>& args;
  const ScanBlock<S>& block;
  const int id = static_cast<int>(threadIdx.x) - S::kScanners, first = id / S::kStrips, channel;
  const bool inside;                  // all channels of the strip
  const T *x_row, *dt_row, *z_row;    // of the next tile to load
  const T* matrix_row[kMatrixItems];  // of B or C
  T* out_row;
  float D[kStrip] = {}, bias[kStrip] = {};
  Strip<T> x[kItems], dt[kItems], z[kItems], matrices[kMatrixItems];
  Strip<T> x_before[kItems], z_before[kItems];

  __device__ Helper(const ScanArguments<T>& arguments, const ScanBlock<S>& b)
      : args(arguments), block(b), channel(b.slab + id % S::kStrips * kStrip), inside(channel + kStrip <= arguments.e) {
    const int64_t t = block.begin + first;
    x_row = args.x[t] + channel, dt_row = args.dt[t] + channel, out_row = args.out[t] + channel;
    z_row = args.z ? args.z[t] + channel : nullptr;
#pragma unroll
    for (int k = 0; k < kMatrixItems; ++k) {
      const int64_t row = block.begin + matrix_token(k);
      matrix_row[k] = (is_B(k) ? args.B[row] : args.C[row]) + matrix_column(k);
    }
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (channel + j >= args.e) continue;
      if (args.D) D[j] = args.D[channel + j] * kCut;
      if (args.dt_bias) bias[j] = args.dt_bias[channel + j];
    }
  }
  __device__ int matrix_strip(int k) const { return id + k * S::kHelpers; }
  __device__ bool is_B(int k) const { return matrix_strip(k) < kMatrixStrips / 2; }
  __device__ bool is_strip(int k) const { return kMatrixStrips % S::kHelpers == 0 || matrix_strip(k) < kMatrixStrips; }
  __device__ int matrix_token(int k) const { return matrix_strip(k) / kMatrixRow % S::kTile; }
  __device__ int matrix_column(int k) const { return matrix_strip(k) % kMatrixRow * kStrip; }

  __device__ static Strip<T> load(const T* from, int count, float otherwise) {  // `count` elements are there
    Strip<T> strip = Strip<T>::filled(otherwise);
    if constexpr (kAligned) {
      if (count >= kStrip) strip = *reinterpret_cast<const Strip<T>*>(from);
    } else {
#pragma unroll
      for (int j = 0; j < kStrip; ++j)
        if (j < count) strip.elements()[j] = from[j];
    }
    return strip;
  }
  __device__ void load(int tile) {
    const int64_t after = block.length - static_cast<int64_t>(tile) * S::kTile;
    const bool gate = kOutput == ScanOutput::all && args.z;
    if (kAligned && inside && after >= S::kTile && args.n == S::kDepth) {
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        x[k] = *reinterpret_cast<const Strip<T>*>(x_row), x_row += kRows * args.x.stride;
        dt[k] = *reinterpret_cast<const Strip<T>*>(dt_row), dt_row += kRows * args.dt.stride;
        if (gate) z[k] = *reinterpret_cast<const Strip<T>*>(z_row), z_row += kRows * args.z.stride;
      }
#pragma unroll
      for (int k = 0; k < kMatrixItems; ++k)
        if (is_strip(k)) matrices[k] = *reinterpret_cast<const Strip<T>*>(matrix_row[k]);
    } else {
      // Beyond the piece's end Delta is softplus(-infinity) = 0: the state passes unchanged.
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const int count = first + k * kRows < after ? args.e - channel : 0;
        x[k] = load(x_row, count, 0.0f), x_row += kRows * args.x.stride;
        dt[k] = load(dt_row, count, -INFINITY), dt_row += kRows * args.dt.stride;
        if (gate) z[k] = load(z_row, count, 0.0f), z_row += kRows * args.z.stride;
      }
#pragma unroll
      for (int k = 0; k < kMatrixItems; ++k)
        matrices[k] = load(matrix_row[k], is_strip(k) && matrix_token(k) < after ? args.n - matrix_column(k) : 0, 0.0f);
    }
#pragma unroll
    for (int k = 0; k < kMatrixItems; ++k) matrix_row[k] += S::kTile * (is_B(k) ? args.B.stride : args.C.stride);
  }

  __device__ void prepare(int tile) const {
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      float input[kStrip], delta[kStrip];
      x[k].unpack(input);
      dt[k].unpack(delta);
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        delta[j] = softplus_fast<kAccuracy>(delta[j] + bias[j]);  // (9)
        input[j] *= delta[j];
      }
      // In the order in which Scanner::load reads them.
      const int t = first + k * kRows, local = channel - block.slab;
      float both[2 * kStrip];
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        const int at = j / S::kChannels * 2 * S::kChannels + j % S::kChannels;
        both[at] = delta[j], both[at + S::kChannels] = input[j];
      }
      write_shared(block.inputs(tile) + (t * S::kWidth + local) * 2, both);
    }
#pragma unroll
    for (int k = 0; k < kMatrixItems; ++k) {
      if (!is_strip(k)) continue;
      float value[kStrip];
      matrices[k].unpack(value);
      write_shared(block.B(tile) + matrix_strip(k) * kStrip, value);
    }
  }

  // y (11) to out (12). y lacks what tf32 cut off; `D` was made smaller by as much, and dividing by kCut mends both.
  template <bool kGate>
  __device__ void finish(int tile) {
    const float* from = block.y(tile, 0) + first * S::kWidth + channel - block.slab;
    const int64_t after = block.length - static_cast<int64_t>(tile) * S::kTile;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      float y[kStrip], input[kStrip], gate[kStrip];
      read_shared(y, from + k * kRows * S::kWidth);
#pragma unroll
      for (int plane = 1; plane < S::kStateWarps; ++plane) {
        float part[kStrip];
        read_shared(part, from + k * kRows * S::kWidth + plane * S::kPlane);
#pragma unroll
        for (int j = 0; j < kStrip; ++j) y[j] += part[j];
      }
      x_before[k].unpack(input);
      z_before[k].unpack(gate);
#pragma unroll
      for (int j = 0; j < kStrip; ++j) {
        y[j] = fmaf(D[j], input[j], y[j]);
        if (kGate)
          y[j] *= gate[j] * reciprocal_fast(fmaf(kCut, exp2_fast(gate[j] * -kLog2E), kCut));
        else
          y[j] *= 1 / kCut;
      }
      Strip<T> out;
      out.pack(y);
      if (first + k * kRows < after) {
        if (kAligned) {
          if (inside) *reinterpret_cast<Strip<T>*>(out_row) = out;
        } else {
#pragma unroll
          for (int j = 0; j < kStrip; ++j)
            if (channel + j < args.e) out_row[j] = out.elements()[j];
        }
      }
      out_row += kRows * args.out.stride;
    }
  }

  // Waiting for a tile's y also makes its half of shared memory free for the tile after the next. y itself is safe: the
  // helpers announce that next tile only after they have read this one's.
  __device__ void collect(int tile) {
    block.done.wait(tile);
    if constexpr (kOutput == ScanOutput::all) args.z ? finish<true>(tile) : finish<false>(tile);
  }

  __device__ void run() {
    load(0);
    for (int tile = 0; tile < block.tiles; ++tile) {
      prepare(tile);
      block.full.arrive(tile);
      Strip<T> x_now[kItems], z_now[kItems];
#pragma unroll
      for (int k = 0; k < kItems; ++k) x_now[k] = x[k], z_now[k] = z[k];
      if (tile + 1 < block.tiles) load(tile + 1);
      if (tile > 0) collect(tile - 1);
#pragma unroll
      for (int k = 0; k < kItems; ++k) x_before[k] = x_now[k], z_before[k] = z_now[k];
    }
    collect(block.tiles - 1);
  }
};

}  // namespace ssm::cuda
