// One graph for a step's first batch and one for its others, of the newest shape alone: a curriculum's lengths do not
// come back, and activations are large.
#include "train/gpu_steps.h"

#include "core/error.h"
#include "core/memory.h"
#include "ops/embedding/embedding.h"

namespace ssm {
namespace {

constexpr size_t kResults = 2;
// Batches of a shape that are queued as they are, so that all that ops cache for it is there: choices of algorithms,
// workspaces, tables of the sequences.
constexpr int64_t kPlain = 2;

}  // namespace

// The memory and the work of one shape of batch.
struct GpuSteps::Recorded {
  Recorded(const TokenBatch& batch, int64_t counted_targets, const Device& device)
      : sequences(batch.sequences),
        length(batch.length),
        ids(Tensor::empty(batch.inputs.shape(), DType::i64, device)),
        targets{.ids = Tensor::empty(batch.targets.shape(), DType::i64, device),
                .ignore = kIgnoredTarget,
                .counted = counted_targets},
        seqs(Seqs::dense(batch.sequences, batch.length)) {
    seqs.tables(device);  // now, so that all copies of seqs share them: a recording shall upload nothing
  }

  // The number of targets is an argument of kernels: another number is another shape.
  bool fits(const TokenBatch& batch, int64_t counted) const {
    return batch.sequences == sequences && batch.length == length && targets.counted == counted;
  }

  int64_t sequences, length;
  Tensor ids;
  Targets targets;
  Seqs seqs;
  int64_t made = 0;  // without the graph
  Tensor loss;       // of the newest batch
  std::unique_ptr<cuda::Graph> graph;
};

// Where a step's numbers land on the host.
struct GpuSteps::Result {
  explicit Result(int64_t parts)
      : memory(cuda::allocate_pinned(static_cast<int64_t>(sizeof(double)) * (1 + parts))),
        norm(reinterpret_cast<double*>(memory.get())),
        losses(reinterpret_cast<float*>(norm + 1)) {}
  std::shared_ptr<std::byte> memory;
  double* norm;
  float* losses;
  cuda::Event ready;
};

GpuSteps::GpuSteps(const Device& device, int64_t parts, int64_t vocab, Work work, Graphs graphs)
    : device_(device),
      parts_(parts),
      vocab_(vocab),
      work_(std::move(work)),
      records_(graphs != Graphs::never),
      losses_(Tensor::zeros({parts}, DType::f32, device)) {
  for (size_t i = 0; i < kResults; ++i) results_.push_back(std::make_unique<Result>(parts));
}
GpuSteps::~GpuSteps() {
  if (untaken_ > 0) cudaStreamSynchronize(cuda::stream(device_));  // their numbers land in memory that goes now
}

int64_t GpuSteps::kernels() const { return first_ && first_->graph ? first_->graph->kernels() : 0; }

void GpuSteps::queue(int64_t part, const TokenBatch& batch) {
  check_token_ids(batch.inputs, vocab_);
  const int64_t counted = check_targets("training", batch.targets, vocab_).counted;
  if (part == 0 && first_ && !first_->fits(batch, counted)) {
    first_ = nullptr;
    later_ = nullptr;
  }
  std::unique_ptr<Recorded>& mine = part == 0 ? first_ : later_;
  if (!mine || !mine->fits(batch, counted)) mine = std::make_unique<Recorded>(batch, counted, device_);
  mine->ids.copy_from(batch.inputs);
  mine->targets.ids.copy_from(batch.targets);
  if (records_ && !mine->graph && mine->made >= kPlain) record(*mine, part);
  if (mine->graph) {
    mine->graph->launch();
  } else {
    mine->loss = work_(part, mine->ids, mine->targets, mine->seqs);
    ++mine->made;
  }
  losses_.rows(part, part + 1).copy_from(mine->loss);
}

void GpuSteps::record(Recorded& recorded, int64_t part) {
  // What the plain steps worked in would lie beside the graph's memory, unused.
  release_cached_memory(device_);
  const cuda::Graph* other = part > 0 && first_ ? first_->graph.get() : nullptr;
  const auto work = [&] { recorded.loss = work_(part, recorded.ids, recorded.targets, recorded.seqs); };
  try {
    recorded.graph = std::make_unique<cuda::Graph>(device_, work, other);
  } catch (const Error& problem) {
    // The work itself was done before: it goes on without a graph, and fails there if it must.
    why_no_graph_ = problem.what();
    records_ = false;
  }
}

void GpuSteps::end(const Tensor& norm) {
  require(untaken_ < kResults, "training: ", untaken_, " steps are queued and none was taken");
  Result& result = *results_[(oldest_ + untaken_++) % kResults];
  cuda::queue_download(result.losses, losses_.raw(), losses_.bytes(), device_);
  cuda::queue_download(result.norm, norm.raw(), norm.bytes(), device_);
  result.ready.record(cuda::stream(device_));
}

GpuSteps::Numbers GpuSteps::take() {
  DCHECK(untaken_ > 0);
  const Result& result = *results_[oldest_];
  result.ready.wait();
  oldest_ = (oldest_ + 1) % kResults;
  --untaken_;
  Numbers numbers{.loss = 0, .norm = *result.norm};
  for (int64_t i = 0; i < parts_; ++i)
    numbers.loss += static_cast<double>(result.losses[i]) / static_cast<double>(parts_);
  return numbers;
}

}  // namespace ssm
