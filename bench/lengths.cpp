// The impossible triangle (docs/impossible-triangle.md): blocks of one width around different mixers, trained and
// written with at lengths that double. A mixer's rows of a kind end at the first length that took too long, or that
// found no memory, which a row says.
#include <chrono>
#include <cstring>

#include "bench/models.h"
#include "core/memory.h"
#include "engine/batch.h"
#include "task/task_config.h"
#include "train/trainer.h"

namespace ssm::bench {
namespace {

using Clock = std::chrono::steady_clock;

// Tokens of a training step, in as many sequences as that makes; longer sequences come alone.
constexpr int64_t kHostTokens = 4096, kGpuTokens = 131072;
constexpr int64_t kVocab = 256;
constexpr int64_t kCheckedTokens = 192;  // long enough for S4 and S4D to convolve
constexpr int64_t kPieceOfCheck = 7;     // and then to run as a recurrence
constexpr int kFewestRuns = 3, kMostRuns = 9;
constexpr double kSeconds = 1, kGpuSeconds = 0.1;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Timing timed(const Bench& bench, const std::function<void()>& f) {
  const auto once = [&] {
    const auto start = Clock::now();
    f();
    if constexpr (kHasCuda)
      if (bench.on_gpu()) cuda::synchronize(bench.device());
    return seconds_since(start);
  };
  once();  // makes what is made once
  std::vector<double> times = {once()};
  const double enough = bench.on_gpu() ? kGpuSeconds : kSeconds;
  const int runs = std::clamp(static_cast<int>(enough / times[0]), kFewestRuns, kMostRuns);
  while (static_cast<int>(times.size()) < runs) times.push_back(once());
  return summary(std::move(times));
}

ModelConfig config_of(const LengthsCase& c, const std::string& mixer) {
  TaskConfig task;  // it knows every mixer by the name that a command line has for it
  task.mixer = mixer;
  task.d_model = c.d_model;
  task.layers = c.layers;
  task.heads = std::max<int64_t>(1, c.d_model / 64);
  task.vocab = kVocab;
  return task.model();
}

// A text in pieces that carry a state has the outputs of the text as a whole.
void check_pieces(const Bench& bench, const Model& model, const std::string& mixer) {
  const Tensor ids = random_ids(kCheckedTokens, kVocab);
  const Tensor whole = model.lm().hidden(bench.ctx(), ids, Seqs::dense(1, kCheckedTokens)).value;
  StatePool pool(model.lm().state_spec(), 1, bench.device());
  const Tensor pieces = Tensor::empty(whole.shape(), DType::f32);
  for (int64_t from = 0; from < kCheckedTokens; from += kPieceOfCheck) {
    const int64_t to = std::min(from + kPieceOfCheck, kCheckedTokens);
    const Var out = model.lm().hidden(bench.ctx(), ids.rows(from, to), Seqs::dense(1, to - from), pool.state());
    pieces.rows(from, to).copy_from(out.value.on(Device::cpu()).to(DType::f32));
  }
  bench.check(pieces, whole, 4 * bench.tolerance(1e-4), mixer + ", in pieces");
}

// What a sequence's state is after `tokens`: counts as they are then, numbers at random.
std::vector<std::byte> random_state(const StateSpec& spec, int64_t tokens) {
  std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(spec, tokens)));
  size_t at = 0;
  for (const StateEntry& entry : spec) {
    const bool counts = entry.dtype == DType::i64;
    const Tensor some =
        counts ? Tensor::of(std::vector<int64_t>{tokens}) : random(entry.name, {1 << 16}).to(entry.dtype);
    auto left = static_cast<size_t>(entry.shape.count() * (entry.per_token ? tokens : 1) * bytes_of(entry.dtype));
    while (left > 0) {
      const size_t size = std::min(left, static_cast<size_t>(some.bytes()));
      std::memcpy(bytes.data() + at, some.raw(), size);
      at += size, left -= size;
    }
  }
  return bytes;
}

class Lengths {
 public:
  Lengths(Bench& bench, const LengthsCase& c, std::string mixer, Json& out)
      : bench_(bench), case_(c), mixer_(std::move(mixer)), out_(out) {}

  void run() {
    const ModelConfig config = config_of(case_, mixer_);
    if (bench_.on_gpu() && !config.attends(0) && mixer_kind(config.layer).runs_on == RunsOn::host) return;
    const auto model = random_model(bench_, config, false);
    out_[mixer_]["parameters"] = model->params().count();
    check_pieces(bench_, *model, mixer_);
    for (const int64_t length : case_.lengths) add_state(*model, length);
    for (const int64_t length : case_.lengths) write(*model, length);
    each_until_slow("reading", [&](int64_t length) { return read(*model, length); });
    each_until_slow("training", [&](int64_t length) { return train(config, length); });
  }

 private:
  void each_until_slow(const std::string& what, const std::function<double(int64_t)>& seconds_at) {
    for (const int64_t length : case_.lengths) {
      try {
        if (seconds_at(length) > case_.slowest) return;
      } catch (const Error& problem) {
        const std::string reason = problem.what();
        if (reason.find("out of memory") == std::string::npos) throw;
        return add(what, length, {.unit = "tokens/s", .note = "out of memory"});
      }
    }
  }

  void add(const std::string& what, int64_t length, Row row) {
    row.group = "lengths";
    row.name = text(mixer_, ": ", what);
    row.shape = text(length);
    out_[mixer_][what][row.shape] = row.rate;
    bench_.add(std::move(row));
  }

  void add_state(const Model& model, int64_t length) {
    add("state", length, {.rate = static_cast<double>(bytes_of(model.lm().state_spec(), length)), .unit = "bytes"});
  }

  // One sequence goes on after so many tokens.
  void write(const Model& model, int64_t length) {
    constexpr size_t kUnmeasured = 4;  // the first steps are recorded
    StatePool pool(model.lm().state_spec(), 1, bench_.device());
    const StatePool::Slot slot = pool.acquire();
    pool.restore(slot, random_state(pool.spec(), length));
    Sequence sequence(model, pool, slot);
    sequence.read(random_ids(1, kVocab).span<int64_t>());
    Batch batch(model, bench_.threads(), pool);
    batch.add(
        sequence, {.sampler = {.temperature = 0}, .max_tokens = case_.written},
        [](const WrittenToken&) { return true; }, [](Finish) {});
    std::vector<double> steps;
    for (auto start = Clock::now(); batch.step(); start = Clock::now()) steps.push_back(seconds_since(start));
    steps.erase(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(std::min(kUnmeasured, steps.size() - 1)));
    const Timing timing = summary(std::move(steps));
    add("writing", length, {.timing = timing, .rate = 1 / timing.median, .unit = "tokens/s"});
  }

  // One prompt, in the pieces that the engine makes of it.
  double read(const Model& model, int64_t length) {
    const Tensor ids = random_ids(length, kVocab);
    StatePool pool(model.lm().state_spec(), 1, bench_.device());
    const StatePool::Slot slot = pool.acquire();
    const int64_t piece = Sequence::piece(bench_.device());
    const Timing timing = timed(bench_, [&] {
      pool.zero(slot);
      for (int64_t from = 0; from < length; from += piece) {
        const int64_t to = std::min(from + piece, length);
        model.lm().hidden(bench_.ctx(), ids.rows(from, to), Seqs::dense(1, to - from), pool.state());
      }
    });
    add("reading", length, {.timing = timing, .rate = static_cast<double>(length) / timing.median, .unit = "tokens/s"});
    return timing.median;
  }

  double train(const ModelConfig& config, int64_t length) {
    const int64_t batch = std::max<int64_t>(1, (bench_.on_gpu() ? kGpuTokens : kHostTokens) / length);
    const auto model = random_model(bench_, config, true);
    const OneBatch data(batch, length, kVocab);
    Trainer trainer(*model, data, bench_.threads(), constant_rate());
    const double first = trainer.step().loss;
    const int64_t before = memory_stats(bench_.device()).in_use;
    reset_memory_peak(bench_.device());
    double loss = first;
    const Timing timing = timed(bench_, [&] { loss = trainer.step().loss; });
    require(loss < first, mixer_, ", ", batch, " x ", length, ": the loss went from ", first, " to ", loss,
            " on one batch, seen many times");
    const auto tokens = static_cast<double>(batch * length);
    add("training", length, {.timing = timing, .rate = tokens / timing.median, .unit = "tokens/s"});
    const auto peak = static_cast<double>(memory_stats(bench_.device()).peak - before);
    add("training memory", length, {.rate = peak / tokens, .unit = "bytes/token"});
    return timing.median;
  }

  Bench& bench_;
  const LengthsCase& case_;
  std::string mixer_;
  Json& out_;
};

}  // namespace

void bench_lengths(Bench& bench, const LengthsCase& c, Json& out) {
  Json& at = out["lengths"];
  at["d_model"] = c.d_model;
  at["layers"] = c.layers;
  for (const std::string& mixer : c.mixers) Lengths(bench, c, mixer, at).run();
}

}  // namespace ssm::bench
