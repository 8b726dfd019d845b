// The state of sequences: rows in a pool, addressed by slot, copied like bytes. A model's StateSpec lists the entries
// one sequence needs; the pool holds each as one tensor (slots, entry's shape).
//
// An entry `per_token` grows (the keys and values of attention): its tensor is (slots, capacity, shape), the first n
// rows of a slot count, and n is the entry right before it, i64 {1}. The op that appends asks make_room() first, which
// doubles the capacity of all slots, so a token is moved less than twice in all; the price is that a slot has room for
// as many tokens as the longest. Saving, copying and restoring touch the n rows alone.
//
// Entries of i64 count tokens. They decide what is launched and what grows, so they are in the host's memory whatever
// the device.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/sequences.h"

namespace ssm {

struct StateEntry {
  std::string name;  // "layers.3.ssm"
  Shape shape;       // of one sequence, or of one token of it
  DType dtype = DType::f32;
  bool per_token = false;
};
using StateSpec = std::vector<StateEntry>;

int64_t bytes_of(const StateSpec& spec, int64_t tokens = 0);  // of one sequence that has read so many

// The state tensors a forward reads and advances, one Var an entry, in the spec's order; empty: start from zero and
// keep nothing. Without a tape an op writes the slots in place. Under a tape it leaves the old tensor alone and puts a
// new Var here, so gradients flow through a state carried from call to call.
using State = std::span<Var>;

// The n of each sequence before a call: of a tensor (slots, 1), i64; absent: 0. Throws Error on a slot that is not
// there.
std::vector<int64_t> token_counts(const Tensor& counts, const Seqs& seqs);
// Adds the call's tokens to them: in place, or under a tape as a new value.
void advance_counts(const Ctx& ctx, Var& counts, const Seqs& seqs);
// A capacity of at least `tokens`; what is there stays. Replaces entry.value when it was smaller.
void make_room(Var& entry, int64_t tokens);
// What saved bytes hold: the spec with (n, shape) for each entry per token. Throws Error when they are no such state.
StateSpec spec_of_saved(const StateSpec& spec, std::span<const std::byte> saved);

class StatePool {
 public:
  using Slot = int64_t;
  StatePool(StateSpec spec, int64_t slots, const Device& device = Device::cpu());

  Slot acquire();  // a zeroed slot; throws Error when all are taken
  void release(Slot slot);
  void zero(Slot slot);
  void copy(Slot from, Slot to);
  // On a GPU, one more slot, whose contents nobody minds: for rows that fill up a batch.
  Slot scratch() const { return slots_; }
  int64_t slots() const { return slots_; }
  const Device& device() const { return device_; }
  const StateSpec& spec() const { return spec_; }
  State state() { return rows_; }

  // The bytes of one slot, entries in the spec's order: what a state file holds.
  std::vector<std::byte> save(Slot slot) const;
  void restore(Slot slot, std::span<const std::byte> bytes);

 private:
  Tensor row(size_t entry, Slot slot) const;  // (1, entry's shape), or (n, shape) of an entry per token
  StateSpec spec_;
  int64_t slots_;
  Device device_;
  std::vector<Var> rows_;
  std::vector<Slot> free_;
};

}  // namespace ssm
