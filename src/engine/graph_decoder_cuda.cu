// A step is the same work on the same memory every time, so it is recorded once for each size of batch. Batches are
// filled up to a few sizes with rows that read and write the pool's scratch slot.
#include "engine/graph_decoder.h"

#include <algorithm>
#include <cstring>

#include "core/cuda.h"
#include "core/error.h"
#include "core/sequences.h"
#include "engine/sampler_cuda.h"

namespace ssm {
namespace {

constexpr size_t kResults = 2;

// 1, 2, 4, 8, then multiples of 8, 16, 32 ...: an eighth of the rows at most are for nothing.
int64_t filled_up(int64_t rows) {
  int64_t step = 1;
  while (step * 8 < rows) step *= 2;
  if (rows <= 8)
    while (step < rows) step *= 2;
  return (rows + step - 1) / step * step;
}

void set_uniforms(const Tensor& uniform, std::span<const double> values) {
  std::vector<double> all(static_cast<size_t>(uniform.count()), 0);
  std::copy(values.begin(), values.end(), all.begin());
  uniform.copy_from(Tensor::of(all));
}

}  // namespace

// The memory and the recorded step of one size of batch.
struct GraphDecoder::Bucket {
  Bucket(int64_t count, const Device& device)
      : rows(count),
        ids(Tensor::zeros({count}, DType::i64, device)),
        slots(Tensor::zeros({count}, DType::i64, device)),
        temperature(Tensor::zeros({count}, DType::f32, device)),
        top_p(Tensor::zeros({count}, DType::f32, device)),
        top_k(Tensor::zeros({count}, DType::i64, device)),
        uniform(Tensor::zeros({count}, DType::f64, device)),
        failed(Tensor::zeros({1}, DType::i32, device)),
        seqs(Seqs::singles(slots)) {}

  int64_t rows;
  Tensor ids, slots, temperature, top_p, top_k, uniform, failed;
  Seqs seqs;
  Tensor hidden;  // (rows, d): what the newest choice was made from
  struct Step {
    bool warm = false;  // it was made once as it is, so that all it caches is there
    std::unique_ptr<cuda::Graph> graph;
    Tensor hidden;  // where the graph leaves it
  };
  Step greedy, drawing;
};

// Where a step's tokens land on the host.
struct GraphDecoder::Result {
  explicit Result(int64_t capacity)
      : memory(cuda::allocate_pinned((capacity + 1) * static_cast<int64_t>(sizeof(int64_t)))), rows(capacity) {}
  int64_t* ids() const { return reinterpret_cast<int64_t*>(memory.get()); }
  std::shared_ptr<std::byte> memory;  // the ids, then `failed`
  int64_t rows;
  cuda::Event ready;
};

GraphDecoder::GraphDecoder(const Model& model, Threads& threads, StatePool& pool)
    : model_(model),
      ctx_{.device = model.options().device, .threads = &threads},
      pool_(pool),
      // Counts of tokens decide on the host what is launched (core/state.h).
      grows_(std::any_of(pool.spec().begin(), pool.spec().end(),
                         [](const StateEntry& entry) { return entry.dtype == DType::i64; })) {}
GraphDecoder::~GraphDecoder() = default;

int64_t GraphDecoder::queued() const { return static_cast<int64_t>(queued_); }

GraphDecoder::Bucket& GraphDecoder::bucket(int64_t rows) {
  auto& found = buckets_[rows];
  if (!found) found = std::make_unique<Bucket>(rows, ctx_.device);
  return *found;
}

void GraphDecoder::start(std::span<const Row> rows) {
  DCHECK(queued_ == 0 && !rows.empty());
  rows_ = static_cast<int64_t>(rows.size());
  active_ = &bucket(grows_ ? rows_ : filled_up(rows_));
  const auto count = static_cast<size_t>(active_->rows);
  std::vector<int64_t> slots(count, pool_.scratch()), top_k(count, 0);
  std::vector<float> temperature(count, 0), top_p(count, 1);
  random_ = false;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SamplerOptions& options = rows[i].sampler;
    slots[i] = rows[i].slot;
    temperature[i] = static_cast<float>(options.temperature);
    top_p[i] = static_cast<float>(options.top_p);
    top_k[i] = options.top_k;
    random_ = random_ || options.temperature != 0;
  }
  if (grows_)
    active_->seqs = Seqs::ragged(std::vector<int64_t>(count, 1), slots);
  else
    active_->slots.copy_from(Tensor::of(slots));
  active_->top_k.copy_from(Tensor::of(top_k));
  active_->temperature.copy_from(Tensor::of(temperature));
  active_->top_p.copy_from(Tensor::of(top_p));
}

void GraphDecoder::sample(Bucket& bucket, const Tensor& logits) const {
  cuda::sample({.logits = logits,
                .vocab = model_.config().vocab_size,
                .temperature = bucket.temperature,
                .top_p = bucket.top_p,
                .top_k = bucket.top_k,
                .uniform = bucket.uniform,
                .ids = bucket.ids,
                .failed = bucket.failed,
                .all_greedy = !random_},
               cuda::stream(ctx_.device));
}

void GraphDecoder::forward(Bucket& bucket) const {
  bucket.hidden = model_.lm().hidden(ctx_, bucket.ids, bucket.seqs, pool_.state()).value;
  sample(bucket, model_.lm().logits(ctx_, {bucket.hidden, {}}).value);
}

void GraphDecoder::choose(const Tensor& outputs, std::span<const double> uniforms) {
  DCHECK(active_ && outputs.size(0) == rows_);
  if (random_) set_uniforms(active_->uniform, uniforms);
  Tensor all = outputs;
  if (rows_ < active_->rows) {
    all = Tensor::zeros({active_->rows, outputs.size(1)}, outputs.dtype(), ctx_.device);
    all.rows(0, rows_).copy_from(outputs);
  }
  active_->hidden = all;
  sample(*active_, model_.lm().logits(ctx_, {all, {}}).value);
  queue_result();
}

void GraphDecoder::step(std::span<const double> uniforms) {
  DCHECK(active_ && queued_ < kResults);
  if (random_) set_uniforms(active_->uniform, uniforms);
  Bucket::Step& recorded = random_ ? active_->drawing : active_->greedy;
  if (grows_ || !recorded.warm) {
    forward(*active_);
    recorded.warm = true;
  } else {
    if (!recorded.graph) {
      recorded.graph = std::make_unique<cuda::Graph>(ctx_.device, [this] { forward(*active_); });
      recorded.hidden = active_->hidden;
    }
    recorded.graph->launch();
    active_->hidden = recorded.hidden;
  }
  queue_result();
}

void GraphDecoder::queue_result() {
  results_.resize(kResults);
  auto& result = results_[(first_ + queued_++) % kResults];
  if (!result || result->rows < active_->rows) result = std::make_unique<Result>(active_->rows);
  cuda::queue_download(result->ids(), active_->ids.raw(), active_->ids.bytes(), ctx_.device);
  cuda::queue_download(result->ids() + result->rows, active_->failed.raw(), active_->failed.bytes(), ctx_.device);
  result->ready.record(cuda::stream(ctx_.device));
}

std::vector<int64_t> GraphDecoder::take() {
  DCHECK(queued_ > 0);
  const Result& result = *results_[first_];
  result.ready.wait();
  first_ = (first_ + 1) % kResults;
  --queued_;
  int32_t failed = 0;
  std::memcpy(&failed, result.ids() + result.rows, sizeof failed);
  require(failed == 0,
          "the model's logits are not finite; its weights or its state are damaged, or training has diverged");
  return {result.ids(), result.ids() + rows_};
}

Tensor GraphDecoder::output(int64_t row) const { return active_->hidden.rows(row, row + 1); }

}  // namespace ssm
