// What the two roles of a block of the selective scan forward share: arguments, the block's shape, barriers. A block
// walks along one piece of a sequence with a slab of its channels, a tile of tokens at a time, in two roles that work
// at the same time. "Helpers" load a tile, make Delta and Delta x of it and put them, with B and C, into shared memory;
// "scanners" carry the states in registers through the tile and put y there; the helpers gate y and store it.
// README.md, "On the GPU, forward", has the counts behind it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/cuda_kernel.cuh"
#include "ops/selective_scan/selective_scan.h"
#include "ops/selective_scan/selective_scan_math.cuh"

namespace ssm::cuda {

template <class T>
struct ScanArguments {
  Rows<const T> x, dt, z, B, C;  // (t, e), (t, n); z may be null
  Rows<T> out;                   // (t, e)
  const float* A_log;            // (e, n)
  const float *D, *dt_bias;      // (e), or null
  float* h;                      // (slots, n, e), or null
  Rounded<T>* starts;            // (chunks, n, e), or null
  float* ends;                   // (pieces, n, e): in, where a piece starts; as kEndsOnly, out, where it ends from 0
  float* steps;                  // (pieces, e): as kEndsOnly, out, the sum of Delta over the piece
  const int64_t *offsets, *slots, *pieces;
  int64_t piece_length;  // tokens of all pieces but a sequence's last
  int e, n, slabs;       // slabs of channels
};

enum class ScanOutput { all, ends_only };

// How a block is made. A scanner's lane owns kChannels channels and 2 kPairs states: with mma.m16n8k8 in mind, lane / 4
// says which channels of the warp's 8 kChannels, lane % 4 which states of its 8 kPairs.
template <class T, int channels, int pairs, int channel_warps, int state_warps, int helper_warps, int tile, int group,
          int blocks>
struct ScanShape {
  using Element = T;
  static constexpr int kChannels = channels, kPairs = pairs, kChannelWarps = channel_warps, kStateWarps = state_warps,
                       kTile = tile;                           // tokens
  static constexpr int kGroup = group;                         // tokens a scanner has at each stage of its pipeline
  static constexpr int kBlocks = blocks;                       // an SM
  static constexpr int kStates = 2 * pairs;                    // a lane's
  static constexpr int kWidth = 8 * channels * channel_warps;  // a block's channels
  static constexpr int kDepth = 4 * kStates * state_warps;     // a block's states, at least n
  static constexpr int kScanners = 32 * channel_warps * state_warps, kHelpers = 32 * helper_warps;
  static constexpr int kThreads = kScanners + kHelpers;
  // Shared memory, in floats, twice: a tile's (Delta, Delta x), B, C, and y in one plane a state warp.
  static constexpr int kInputs = tile * kWidth * 2, kMatrix = tile * kDepth, kPlane = tile * kWidth;
  static constexpr int kStage = kInputs + 2 * kMatrix + state_warps * kPlane;
  static constexpr size_t kShared = 2 * kStage * sizeof(float) + 4 * sizeof(uint64_t);
  // A helper owns a strip of neighbouring channels, 16 bytes of them, of every kRows-th token.
  static constexpr int kStrip = 16 / sizeof(T), kStrips = kWidth / kStrip, kRows = kHelpers / kStrips,
                       kItems = tile / kRows;
  static_assert(kHelpers % kStrips == 0 && tile % kRows == 0 && tile % group == 0 && tile >= 2 * group &&
                tile % kScanChunkCuda == 0 && kScanChunkCuda % group == 0);
  static_assert(channels > 1 || group % 2 == 0);
};

// What one role tells the other, a pair of barriers a half of shared memory: the tile is there; the scanners are done
// with it. Only who waits waits: scanners run past each other and past the helpers as far as the two halves allow.
class TileBarrier {
 public:
  __device__ explicit TileBarrier(uint64_t* pair) : pair_(pair) {}
  __device__ void init(int warps) const {
    for (int i = 0; i < 2; ++i)
      asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address(pair_ + i)), "r"(warps * kArrivals) : "memory");
  }
  __device__ void arrive(int tile) const {  // by every warp of the role
    __syncwarp();
    if (threadIdx.x % 32 < kArrivals)
      asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(address(pair_ + (tile & 1)))
                   : "memory");
  }
  __device__ void wait(int tile) const {
    asm volatile(
        "{\n .reg .pred done;\n"
        "again%=:\n"
#if __CUDA_ARCH__ >= 900
        " mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
#else
        " mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
#endif
        " @!done bra again%=;\n}" ::"r"(address(pair_ + (tile & 1))),
        "r"(tile >> 1 & 1)
        : "memory");
  }

 private:
  // A warp's first lane arrives for all. racecheck believes that of a lane for itself alone: for it every lane arrives,
  // which costs 5 % at batch 1.
#ifdef SSM_RACECHECK
  static constexpr unsigned kArrivals = 32;
#else
  static constexpr unsigned kArrivals = 1;
#endif
  __device__ static uint32_t address(uint64_t* barrier) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
  }
  uint64_t* pair_;
};

template <int count>
__device__ __forceinline__ void read_shared(float (&to)[count], const float* from) {
  if constexpr (count % 4 == 0) {
#pragma unroll
    for (int i = 0; i < count; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  } else {
    static_assert(count == 2);
    const float2 v = *reinterpret_cast<const float2*>(from);
    to[0] = v.x, to[1] = v.y;
  }
}

template <int count>
__device__ __forceinline__ void write_shared(float* to, const float (&from)[count]) {
#pragma unroll
  for (int i = 0; i < count; i += 4)
    *reinterpret_cast<float4*>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
}

// What both roles know of their block.
template <class S>
struct ScanBlock {
  int64_t piece, sequence, begin, length, index;  // index: which piece of its sequence
  int slab, tiles;
  float* shared;
  TileBarrier full, done;

  __device__ ScanBlock(const ScanArguments<typename S::Element>& args, float* memory)
      : shared(memory),
        full(reinterpret_cast<uint64_t*>(memory + 2 * S::kStage)),
        done(reinterpret_cast<uint64_t*>(memory + 2 * S::kStage) + 2) {
    if (threadIdx.x == 0) full.init(S::kHelpers / 32), done.init(S::kScanners / 32);
    __syncthreads();
    piece = blockIdx.x / args.slabs;
    slab = static_cast<int>(blockIdx.x % args.slabs) * S::kWidth;
    const int64_t* row = args.pieces + piece * 4;
    sequence = row[0], begin = row[1], length = row[2], index = row[3];
    tiles = static_cast<int>((length + S::kTile - 1) / S::kTile);
  }
  __device__ float* inputs(int tile) const { return shared + (tile & 1) * S::kStage; }
  __device__ float* B(int tile) const { return inputs(tile) + S::kInputs; }
  __device__ float* C(int tile) const { return B(tile) + S::kMatrix; }
  __device__ float* y(int tile, int plane) const { return C(tile) + S::kMatrix + plane * S::kPlane; }
};

}  // namespace ssm::cuda
