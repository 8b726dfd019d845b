// What attention's kernels share: where the queries and keys of each sequence lie.
#pragma once

#include "core/cuda_kernel.cuh"
#include "ops/attention/attention.h"

namespace ssm::cuda {

// k, v or their gradients: (t, g p), or with a state (slots, capacity, g p); strides in elements.
template <class T>
struct KeyRows {
  T* data;
  int64_t stride, slot_stride;
};
template <class T>
KeyRows<T> key_rows(const Tensor& tensor) {
  return {elements<T>(tensor), tensor.stride(-2), tensor.rank() == 3 ? tensor.stride(0) : 0};
}

struct AttentionPlaces {
  const int64_t *offsets, *slots, *before;  // of sequences; slots and before null without a state
  const float* slopes;                      // (m), or null
  int64_t tokens, heads, groups, p;
  float scale;

  // A sequence's row of all its keys.
  template <class T>
  __device__ T* key(const KeyRows<T>& all, int64_t s, int64_t row) const {
    return all.data + (slots ? slots[s] * all.slot_stride : offsets[s] * all.stride) + row * all.stride;
  }
  __device__ int64_t keys_before(int64_t s) const { return before ? before[s] : 0; }
  __device__ int64_t length(int64_t s) const { return offsets[s + 1] - offsets[s]; }
  __device__ int64_t group_of(int64_t head) const { return head * groups / heads; }
};

// The same with what it points to.
struct AttentionTables {
  AttentionTables(const AttentionSizes& sizes, const Seqs& seqs, int64_t tokens, const Tensor& k);
  Tensor before, slopes;
  AttentionPlaces places;
};

// i64 (pieces, 4) like Seqs::pieces, of all keys of the sequences.
Tensor key_pieces(const AttentionSizes& sizes, const Seqs& seqs, int64_t length, const Device& device);

// bf16 and f16, rows on 16 bytes (attention_forward_cuda.cu, attention_backward_cuda.cu).
void attention_tile_forward(const AttentionForward&, Stream);
constexpr int kMostBackwardWidth = 128;  // of a head, there
void attention_tile_backward(const AttentionBackward&, Stream);
// The same on compute capability 9.0 (attention_warpgroup_forward_sm90a.cu).
constexpr int kMostWarpgroupWidth = 128;
void attention_warpgroup_forward(const AttentionForward&, Stream);
void attention_warpgroup_backward(const AttentionBackward&, Stream);
// f32 (m, t): the sum of (6), which is dout . out.
Tensor attention_shared_sums(const AttentionBackward&, const AttentionPlaces&, Stream);
// Few rows behind many keys, rows on 16 bytes; leaves no lse (attention_rows_cuda.cu).
void attention_rows_forward(const AttentionForward&, Stream);
// For f32, and shapes that tensor cores do not take (attention_plain_cuda.cu).
void attention_plain_forward(const AttentionForward&, Stream);
void attention_plain_backward(const AttentionBackward&, Stream);

}  // namespace ssm::cuda
