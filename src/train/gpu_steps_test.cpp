// Training on a GPU: a step that is replayed as a graph is the step, bit for bit, for every mixer, dtype, number of
// parts and change of shapes, and so is one that began before the step in front of it was looked at.
#include "train/gpu_steps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/memory.h"
#include "core/rng.h"
#include "formats/test_files.h"
#include "mixers/mixer.h"
#include "train/trainer.h"

namespace ssm {
namespace {

constexpr int64_t kVocab = 40;

bool skipped() {
  std::string why = "this program was built without CUDA";
  if constexpr (kHasCuda) {
    if (cuda::device_count() > 0) return false;
    why = cuda::why_no_device();
  }
  [&] { GTEST_SKIP() << why; }();
  return true;
}

// Batches of 3 random sequences, of the length that `length` says; every `ignored`-th position has no target.
class RandomBatches final : public Dataset {
 public:
  explicit RandomBatches(std::function<int64_t(int64_t)> length, int64_t ignored = 1 << 20)
      : length_(std::move(length)), ignored_(ignored) {}
  TokenBatch batch(int64_t step) const override {
    const int64_t length = length_(step), count = 3 * length;
    const Rng rng(5, text("batch ", step));
    TokenBatch batch{Tensor::empty({count}, DType::i64), Tensor::empty({count}, DType::i64), 3, length};
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<uint64_t>(i);
      batch.inputs.data<int64_t>()[i] = static_cast<int64_t>(rng.below(2 * at, kVocab));
      batch.targets.data<int64_t>()[i] =
          i % ignored_ == 1 ? kIgnoredTarget : static_cast<int64_t>(rng.below(2 * at + 1, kVocab));
    }
    return batch;
  }
  int64_t steps() const override { return -1; }

 private:
  std::function<int64_t(int64_t)> length_;
  int64_t ignored_;
};

struct Setting {
  std::string model;  // JSON
  DType dtype = DType::f32;
  int64_t accumulate = 1;
  bool recompute = false;
};

std::string with_layer(const std::string& layer) {
  return text(R"({"d_model": 64, "n_layer": 2, "vocab_size": 40, "ssm_cfg": {"layer": ")", layer, "\"}}");
}

struct TrainedModel {
  TrainedModel(const Setting& setting, const Dataset& data, const std::string& cuda_graph, int64_t steps)
      : model(Model::create(ModelConfig::from_json(setting.model, "model"), 1,
                            {.device = Device::cuda(), .dtype = setting.dtype, .trainable = true})) {
    TrainingState state;
    state.config.accumulate = setting.accumulate;
    state.config.recompute = setting.recompute;
    state.config.cuda_graph = cuda_graph;
    state.config.rate = {.steps = steps, .lr = 1e-2, .warmup = 3, .schedule = "cosine"};
    trainer = std::make_unique<Trainer>(*model, data, threads, state);
  }
  Threads threads{1};
  std::unique_ptr<Model> model;
  std::unique_ptr<Trainer> trainer;
};

struct Trace {
  std::vector<double> numbers;  // loss and norm of each step
  std::map<std::string, std::vector<float>> values;
  int64_t kernels = 0;
};

Trace trace(const Setting& setting, const Dataset& data, const std::string& cuda_graph, Ahead ahead, int64_t steps) {
  TrainedModel run(setting, data, cuda_graph, steps);
  Trace result;
  while (!run.trainer->done()) {
    const StepResult step = run.trainer->step(ahead);
    result.numbers.insert(result.numbers.end(), {step.loss, step.grad_norm});
  }
  EXPECT_FALSE(run.trainer->is_ahead());
  for (const auto& param : run.model->params().all()) {
    const Tensor value = param->exact().on(Device::cpu());
    result.values[param->name].assign(value.data<float>(), value.data<float>() + value.count());
  }
  EXPECT_EQ(run.trainer->why_not_recorded(), "");
  result.kernels = run.trainer->recorded_kernels();
  return result;
}

void expect_same(const Trace& found, const Trace& expected, const std::string& what) {
  EXPECT_EQ(found.numbers, expected.numbers) << what;
  for (const auto& [name, values] : expected.values)
    EXPECT_TRUE(found.values.at(name) == values) << what << ": " << name;
}

void expect_graph_changes_nothing(const Setting& setting, const std::string& what) {
  SCOPED_TRACE(
      text(what, ", ", name_of(setting.dtype), ", ", setting.accumulate, " parts, recompute ", setting.recompute));
  constexpr int64_t kSteps = 9;
  const RandomBatches data([](int64_t) { return 19; }, 7);
  const Trace plain = trace(setting, data, "off", Ahead::no, kSteps);
  EXPECT_EQ(plain.kernels, 0);
  EXPECT_LT(plain.numbers[2 * kSteps - 2], plain.numbers[0] + 0.5);
  expect_same(trace(setting, data, "off", Ahead::yes, kSteps), plain, "queued ahead");
  const Trace recorded = trace(setting, data, "auto", Ahead::yes, kSteps);
  EXPECT_GT(recorded.kernels, 10);
  expect_same(recorded, plain, "recorded");
  expect_same(trace(setting, data, "auto", Ahead::no, kSteps), plain, "recorded, one at a time");
}

TEST(GpuStepsCuda, AReplayedStepOfEveryMixerIsTheStep) {
  if (skipped()) return;
  for (const MixerKind& kind : mixer_kinds()) {
    if (kind.runs_on != RunsOn::host_and_gpu || kind.name == kAttention) continue;
    for (const DType dtype : {DType::f32, DType::bf16})
      expect_graph_changes_nothing({.model = with_layer(kind.name), .dtype = dtype}, kind.name);
  }
  for (const char* positions : {R"("rotary_emb_dim": 16)", R"("alibi": true)"})
    for (const DType dtype : {DType::f32, DType::bf16})
      expect_graph_changes_nothing(
          {.model = text(R"({"d_model": 64, "n_layer": 2, "vocab_size": 40, "d_intermediate": 64,
          "attn_layer_idx": [0, 1], "attn_cfg": {"causal": true, "num_heads": 4, )",
                         positions, "}}"),
           .dtype = dtype},
          positions);
}

TEST(GpuStepsCuda, APartsGradientsAreAddedInTheGraphToo) {
  if (skipped()) return;
  for (const int64_t parts : {2, 5})
    for (const bool recompute : {false, true})
      expect_graph_changes_nothing({with_layer("Mamba1"), DType::f32, parts, recompute}, "Mamba1");
  expect_graph_changes_nothing({with_layer("Mamba2"), DType::bf16, 3, true}, "Mamba2");
}

TEST(GpuStepsCuda, ShapesMayChange) {
  if (skipped()) return;
  constexpr int64_t kSteps = 28;  // the last length of `doubling` comes four times
  const Setting setting{.model = with_layer("Mamba1")};
  const RandomBatches doubling([](int64_t step) { return int64_t{9} << step / 6; });
  const RandomBatches alternating([](int64_t step) { return step % 2 ? 9 : 17; });
  const RandomBatches counts([](int64_t) { return 19; }, 5);
  for (const Dataset* data : std::initializer_list<const Dataset*>{&doubling, &alternating, &counts}) {
    const Trace plain = trace(setting, *data, "off", Ahead::no, kSteps);
    const Trace recorded = trace(setting, *data, "auto", Ahead::yes, kSteps);
    expect_same(recorded, plain, "changing shapes");
    EXPECT_EQ(recorded.kernels > 0, data != &alternating);
  }
}

TEST(GpuStepsCuda, AFailedStepIsNamedAndNoneAfterItIsMade) {
  if (skipped()) return;
  constexpr const char* kBroken = "backbone.layers.1.mixer.out_proj.weight";
  const Setting setting{.model = with_layer("Mamba1")};
  const RandomBatches data([](int64_t) { return 19; });
  for (const char* graph : {"off", "auto"}) {
    for (const Ahead ahead : {Ahead::no, Ahead::yes}) {
      SCOPED_TRACE(text(graph, ahead == Ahead::yes ? ", ahead" : ""));
      TrainedModel run(setting, data, graph, 30);
      while (run.trainer->state().step < 7) run.trainer->step(ahead);
      const int64_t fails = run.trainer->is_ahead() ? 9 : 8;  // the eighth had begun
      const auto values = [&] {
        std::vector<float> all;
        for (const auto& param : run.model->params().all()) {
          const Tensor value = param->exact().on(Device::cpu());
          all.insert(all.end(), value.data<float>(), value.data<float>() + value.count());
        }
        return all;
      };
      const Tensor weight = run.model->params().find(kBroken)->var.value, broken = weight.on(Device::cpu());
      broken.data<float>()[5] = std::numeric_limits<float>::infinity();
      weight.copy_from(broken);
      const std::vector<float> before = values();
      const auto go_on = [&] {
        while (!run.trainer->done()) run.trainer->step(ahead);
      };
      EXPECT_TRUE(fails_with(text("step ", fails, ": the loss is "), go_on));
      EXPECT_TRUE(fails_with(text("parameter ", kBroken, " is NaN or infinite"), go_on));
      EXPECT_EQ(run.trainer->state().step, fails - 1);
      EXPECT_FALSE(run.trainer->is_ahead());
      EXPECT_TRUE(values() == before);
    }
  }
}

TEST(GpuStepsCuda, IdsOutsideTheVocabularyAreErrors) {
  if (skipped()) return;
  class Wrong final : public Dataset {
   public:
    TokenBatch batch(int64_t step) const override {
      const Tensor good = Tensor::of(std::vector<int64_t>{1, 2, 3}), bad = Tensor::of(std::vector<int64_t>{1, 2, 4000});
      return {step == 0 ? bad : good, step == 0 ? good : bad, 1, 3};
    }
    int64_t steps() const override { return -1; }
  };
  for (const auto& [first, message] : {std::pair{0, "token id 4000"}, std::pair{1, "target 4000"}}) {
    const Wrong data;
    TrainedModel run({.model = with_layer("Mamba1")}, data, "auto", 30);
    TrainingState state = run.trainer->state();
    state.step = first;
    Trainer trainer(*run.model, data, run.threads, state);
    EXPECT_TRUE(fails_with(message, [&] { trainer.step(); }));
  }
}

// The report of memory counts what lies in a graph, and a graph takes no more than the steps it replaces.
TEST(GpuStepsCuda, MemoryIsCountedAndStays) {
  if (skipped()) return;
  const Device gpu = Device::cuda();
  const RandomBatches data([](int64_t) { return 2000; });
  const auto peak = [&](const char* graph) {
    TrainedModel run({.model = with_layer("Mamba1"), .accumulate = 2}, data, graph, 30);
    for (int i = 0; i < 5; ++i) run.trainer->step(Ahead::yes);
    run.trainer->step();
    reset_memory_peak(gpu);
    const int64_t calls = memory_stats(gpu).system_calls;
    for (int i = 0; i < 4; ++i) run.trainer->step(Ahead::yes);
    run.trainer->step();
    EXPECT_EQ(memory_stats(gpu).system_calls, calls);
    EXPECT_FALSE(run.trainer->saved_bytes().empty());
    return static_cast<double>(memory_stats(gpu).peak);
  };
  const double plain = peak("off"), recorded = peak("auto");
  EXPECT_NEAR(recorded / plain, 1, 0.1);
}

}  // namespace
}  // namespace ssm
