// Training steps on a GPU: queued there, their numbers taken later, so that the host goes on meanwhile. Forward and
// backward of a batch are the same work on the same memory each time, so once a batch's shape has come twice in a row
// they are recorded as a graph and replayed with one call: what a small model's step takes is the time of queueing its
// kernels one by one. What changes (ids, targets) lies in memory of its own, written before each replay; the update
// (ops/adamw) is queued behind, as its rates are arguments of its kernels.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/cuda.h"
#include "core/sequences.h"
#include "data/loader.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace ssm {

class GpuSteps {
 public:
  // Forward and backward of the `part`-th batch of a step, from 0; returns the loss, f32 (1). Depends on its arguments
  // and on parameters alone.
  using Work = std::function<Tensor(int64_t part, const Tensor& ids, const Targets& targets, const Seqs& sequences)>;
  enum class Graphs { when_it_pays, never };

  // Steps of `parts` batches of token ids below `vocab`.
  GpuSteps(const Device& device, int64_t parts, int64_t vocab, Work work, Graphs graphs);
  ~GpuSteps();

  // Queues the work for one batch. Throws Error on ids or targets outside the vocabulary.
  void queue(int64_t part, const TokenBatch& batch);
  // The losses of the step that is being queued, f32 (parts).
  const Tensor& losses() const { return losses_; }
  // Ends a step; its losses and `norm`, f64 (1), are on their way to the host. At most 2 steps may be untaken.
  void end(const Tensor& norm);

  struct Numbers {
    double loss;  // mean of the parts
    double norm;
  };
  Numbers take();  // of the oldest step; waits for it
  int64_t untaken() const { return static_cast<int64_t>(untaken_); }

  int64_t kernels() const;  // in the graph of a step's first batch; 0: none is recorded
  const std::string& why_no_graph() const { return why_no_graph_; }  // "" unless a recording failed

 private:
  struct Recorded;
  struct Result;
  void record(Recorded& recorded, int64_t part);

  Device device_;
  int64_t parts_, vocab_;
  Work work_;
  bool records_;
  std::string why_no_graph_;
  // Of a step's first batch, whose gradients are the first, and of the others, whose gradients are added to these.
  std::unique_ptr<Recorded> first_, later_;
  Tensor losses_;
  std::vector<std::unique_ptr<Result>> results_;  // a ring
  size_t oldest_ = 0, untaken_ = 0;
};

}  // namespace ssm
