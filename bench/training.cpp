// Training steps, whole and taken apart.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>

#include "bench/models.h"
#include "core/memory.h"
#include "train/trainer.h"

namespace ssm::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What a model of `parameters` cannot do without: 2 operations a parameter and token forward, 4 backward.
double tokens_a_second_at_most(Bench& bench, int64_t parameters) {
  return bench.products() / (6 * static_cast<double>(parameters));
}

// One after the other, without waiting in between but where the trainer does.
Timing time_steps(const Bench& bench, const std::function<void()>& step) {
  constexpr int kRuns = 6;
  std::vector<double> times;
  auto start = Clock::now();
  for (int i = 0; i < kRuns; ++i) {
    step();
    if constexpr (kHasCuda)
      if (bench.on_gpu() && i == kRuns - 1) cuda::synchronize(bench.device());
    times.push_back(seconds_since(start));
    start = Clock::now();
  }
  return summary(std::move(times));
}

// Points of time in the order of the work: events on a GPU, where the host is far ahead of it; else the clock.
class Marks {
 public:
  explicit Marks(const Device& device) : device_(device) {}
  void add(std::string what) {
    names_.push_back(std::move(what));
    if constexpr (kHasCuda) {
      if (device_.is_cuda()) {
        events_.push_back(std::make_shared<cuda::Event>());
        return events_.back()->record(cuda::stream(device_));
      }
    }
    times_.push_back(Clock::now());
  }
  // What each kind of work took in all, from the mark before it to its own; waits for the last. The first mark is the
  // beginning.
  std::map<std::string, double> seconds() const {
    std::map<std::string, double> sums;
    if constexpr (kHasCuda)
      if (device_.is_cuda()) events_.back()->wait();
    for (size_t i = 1; i < names_.size(); ++i) sums[names_[i]] += between(i - 1, i);
    return sums;
  }
  int64_t count(const std::string& name) const { return std::count(names_.begin(), names_.end(), name); }

 private:
  double between(size_t from, size_t to) const {
    if constexpr (kHasCuda)
      if (device_.is_cuda()) return events_[to]->since(*events_[from]);
    return std::chrono::duration<double>(times_[to] - times_[from]).count();
  }
  Device device_;
  std::vector<std::string> names_;
  std::vector<std::shared_ptr<cuda::Event>> events_;
  std::vector<Clock::time_point> times_;
};

}  // namespace

OneBatch::OneBatch(int64_t sequences, int64_t length, int64_t vocab) {
  const int64_t t = sequences * length;
  const Tensor ids = random_ids(2 * t, vocab);
  batch_ = {.inputs = ids.rows(0, t), .targets = ids.rows(t, 2 * t), .sequences = sequences, .length = length};
}

TrainingState constant_rate() {
  TrainingState state;
  state.config.rate.lr = 1e-4;
  state.config.rate.warmup = 0;
  return state;
}

void bench_train(Bench& bench, const TrainCase& c, Json& out) {
  const std::string name = text("train step ", name_of(bench.dtype()));
  if (!bench.wanted(name, c.shape())) return;
  const auto model = random_model(bench, c.preset, true);
  const OneBatch data(c.batch, c.length, model->config().vocab_size);
  Trainer trainer(*model, data, bench.threads(), constant_rate());
  const double first_loss = trainer.step().loss;
  double loss = first_loss;
  const auto step = [&] { loss = trainer.step(Ahead::yes).loss; };
  for (int i = 0; i < (bench.on_gpu() ? 3 : 1); ++i) step();  // on a GPU the third is recorded
  reset_memory_peak(bench.device());
  const auto tokens = static_cast<double>(c.batch * c.length);
  Row row{.group = "model", .name = name, .shape = c.shape(), .unit = "tokens/s"};
  if (bench.on_gpu()) {
    row.timing = time_steps(bench, step);
    const auto peak = static_cast<double>(memory_stats(bench.device()).peak);
    row.limit = tokens_a_second_at_most(bench, model->params().count());
    row.limit_name = "6 x params x tokens";
    row.note = text("peak ", std::round(peak / (1 << 30) * 10) / 10, " GiB");
  } else {
    const Projections projections(*model);
    const BarePasses bare(projections, c.batch * c.length, bench.threads().count());
    const auto [ours, gemm] = time_in_turn(step, [&] { bare.train(); });
    row.timing = ours;
    row.limit = tokens / gemm.median;
    row.limit_name = "its bare sgemm";
    out["train_gemm_gflops"] = bare.train_operations() / gemm.median / 1e9;
    out["train_share_of_gemm"] = gemm.median / ours.median;
  }
  require(loss < first_loss, name, ": the loss went from ", first_loss, " to ", loss, " on one batch, seen many times");
  row.rate = tokens / row.timing.median;
  Json& at = bench.on_gpu() ? out["train"][c.shape()] : out;
  at["train_preset"] = c.preset;
  at["train_parameters"] = model->params().count();
  at["train_tokens_per_second"] = row.rate;
  at["train_peak_bytes"] = memory_stats(bench.device()).peak;
  for (const SavedBytes& saved : trainer.saved_bytes()) at["train_saved_bytes"][saved.op] = saved.bytes;
  bench.add(std::move(row));
}

void bench_step(Bench& bench, const TrainCase& c, Json& out) {
  constexpr int kUnmeasured = 2, kMeasured = 5;
  const auto model = random_model(bench, c.preset, true);
  const OneBatch data(c.batch, c.length, model->config().vocab_size);
  const Seqs seqs = Seqs::dense(c.batch, c.length);
  Optimizer optimizer(model->params());
  std::map<std::string, std::vector<double>> times;
  std::map<std::string, int64_t> calls;
  std::vector<double> whole, host;
  for (int step = 1; step <= kUnmeasured + kMeasured; ++step) {
    Marks marks(bench.device());
    const auto start = Clock::now();
    marks.add("begin");
    model->params().forget_gradients();
    Tape tape;
    tape.observe(
        [&](const char* op, Pass pass) { marks.add(text(op, pass == Pass::forward ? " forward" : " backward")); });
    model->params().mark_on(tape);
    tape.backward(model->lm().loss(bench.ctx(&tape), data.only().inputs, data.only().targets, seqs));
    const double queued = seconds_since(start);
    optimizer.update(bench.ctx(), {}, 1e-4, 1e-4, step);
    marks.add("optimizer");
    const std::map<std::string, double> spent = marks.seconds();
    if (step <= kUnmeasured) continue;
    double sum = 0;
    for (const auto& [name, seconds] : spent) {
      times[name].push_back(seconds);
      calls[name] = marks.count(name);
      sum += seconds;
    }
    whole.push_back(sum);
    host.push_back(queued);
  }
  const Timing all = summary(whole);
  const auto add = [&](const std::string& name, const Timing& timing, const std::string& note) {
    bench.add({.group = "step",
               .name = name,
               .shape = c.shape(),
               .timing = timing,
               .rate = timing.median * 1e3,
               .unit = "ms",
               .limit = all.median * 1e3,
               .limit_name = "the step",
               .note = note});
    out["step"][c.shape()][name] = timing.median;
  };
  std::vector<std::pair<Timing, std::string>> rows;
  for (const auto& [name, seconds] : times) rows.emplace_back(summary(seconds), name);
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.first.median > b.first.median; });
  add("whole", all, "");
  for (const auto& [timing, name] : rows) add(name, timing, text(calls[name], " calls"));
  if (bench.on_gpu()) add("host, queueing", summary(host), "beside the GPU");
}

}  // namespace ssm::bench
