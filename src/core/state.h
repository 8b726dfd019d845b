// The state of sequences: fixed rows in a pool, addressed by slot, copied like bytes. A model's StateSpec lists the
// entries one sequence needs; the pool holds each as one tensor (slots, entry's shape).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/tape.h"

namespace ssm {

struct StateEntry {
  std::string name;  // "layers.3.ssm"
  Shape shape;       // of one sequence
  DType dtype = DType::f32;
};
using StateSpec = std::vector<StateEntry>;

int64_t bytes_of(const StateSpec& spec);  // of one sequence

// The state tensors a forward reads and advances, one Var an entry, in the spec's order; empty: start from zero and
// keep nothing. Without a tape an op writes the slots in place. Under a tape it leaves the old tensor alone and puts a
// new Var here, so gradients flow through a state carried from call to call.
using State = std::span<Var>;

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
  Tensor row(size_t entry, Slot slot) const;  // (1, entry's shape)
  StateSpec spec_;
  int64_t slots_;
  Device device_;
  std::vector<Var> rows_;
  std::vector<Slot> free_;
};

}  // namespace ssm
