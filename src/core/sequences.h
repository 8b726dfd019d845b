// Packed rows: activations are (t, channels) with the tokens of all sequences one after the other. Seqs says where
// each sequence lies and which state row is its own. Dense batches, packed documents, chunks and single tokens are
// all this one case.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace ssm {

struct Seqs {
  std::vector<int64_t> offsets = {0};  // (count + 1): sequence s is rows [offsets[s], offsets[s+1]); may be empty
  std::vector<int64_t> slots;          // (count): its state is row slots[s] of every state tensor; all different
  int64_t longest = 0;                 // rows of the longest sequence

  int64_t count() const { return static_cast<int64_t>(slots.size()); }
  int64_t tokens() const { return offsets.back(); }
  int64_t length(int64_t s) const { return offsets[static_cast<size_t>(s) + 1] - offsets[static_cast<size_t>(s)]; }

  static Seqs dense(int64_t count, int64_t length);  // slots 0, 1, ...
  static Seqs ragged(std::span<const int64_t> lengths, std::span<const int64_t> slots = {});
  // One token each, with the slots, i64 (count), on a GPU, where they may change between calls: those of `slots` here
  // are then no more than places.
  static Seqs singles(const Tensor& device_slots);

  // The same on a GPU, i64, for kernels: made when first asked for and shared with the copies of this, so a Seqs that
  // was used does not change any more.
  struct Tables {
    Tensor offsets, slots;  // (count + 1), (count)
  };
  const Tables& tables(const Device& device) const;
  // All sequences cut into pieces of at most `length` rows, sequence after sequence: i64 (pieces, 4), each the
  // sequence, the first row, the rows, and which piece of its sequence it is.
  const Tensor& pieces(const Device& device, int64_t length) const;

 private:
  struct Cache {
    Device device;
    Tables tables;
    std::map<int64_t, Tensor> pieces;
  };
  Cache& cache(const Device& device) const;
  mutable std::shared_ptr<Cache> cache_;
};

}  // namespace ssm
