// Whole training runs of a model of a few thousand parameters: what equals what, bit for bit, and what survives.
#include "train/trainer.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <limits>
#include <thread>

#include "core/memory.h"
#include "formats/test_files.h"
#include "train/training.h"

namespace ssm {
namespace {

ModelConfig tiny_model(int64_t vocab = 32) {
  return ModelConfig::from_json(text("{\"d_model\": 16, \"n_layer\": 2, \"vocab_size\": ", vocab, "}"), "tiny");
}

TrainConfig tiny_settings(int64_t steps = 20) {
  TrainConfig config;
  config.preset = "tiny";
  config.batch = 4;
  config.length = 13;
  config.rate = {.steps = steps, .lr = 3e-3, .warmup = 5};
  config.eval_every = 4;
  config.save_every = 5;
  config.keep = 0;
  return config;
}

// A sequence with something to learn: mostly one more than before.
Tokens tiny_text(int64_t vocab = 32) {
  const Rng rng(7, "tiny text");
  std::vector<int64_t> ids = {0};
  for (uint64_t i = 1; i < 4000; ++i)
    ids.push_back(rng.below(2 * i, 4) ? (ids.back() + 1) % vocab
                                      : static_cast<int64_t>(rng.below(2 * i + 1, static_cast<uint64_t>(vocab))));
  return Tokens::from_ids(ids, vocab, "numbers");
}

// A run with all that belongs to it; `checkpoint` empty: from the start.
struct TinyRun {
  explicit TinyRun(const TrainConfig& config, const Path& checkpoint = {}, ModelOptions options = {},
                   int64_t vocab = 32)
      : tokens(tiny_text(vocab)),
        split(split_tokens(tokens.count(), 0.1)),
        loader(tokens, split.train, {.batch = config.batch, .length = config.length, .seed = 3}),
        held_back(tokens, split.validation, config.batch, config.length) {
    options.trainable = true;
    model = checkpoint.empty() ? Model::create(tiny_model(vocab), 1, options) : Model::open(checkpoint, options);
    TrainingState state = checkpoint.empty() ? TrainingState{.seed = 3} : read_training_state(checkpoint);
    state.config = config;
    trainer = std::make_unique<Trainer>(*model, loader, threads, state);
    if (!checkpoint.empty()) trainer->load_optimizer(checkpoint);
  }

  Threads threads{2};
  Tokens tokens;
  Split split;
  Loader loader;
  SequentialWindows held_back;
  std::unique_ptr<Model> model;
  std::unique_ptr<Trainer> trainer;
};

// The test is marked as skipped then.
bool skipped_for_want_of_gpu() {
  std::string why = "this program was built without CUDA";
  if constexpr (kHasCuda) {
    if (cuda::device_count() > 0) return false;
    why = cuda::why_no_device();
  }
  [&] { GTEST_SKIP() << why; }();
  return true;
}

GoOn always(const StepResult&) { return GoOn::yes; }

void train_into(const Path& out, const TrainConfig& config,
                const std::function<GoOn(const StepResult&)>& after_step = always, const ModelOptions& options = {}) {
  RunDirectory directory = RunDirectory::start(out);
  TinyRun run(config, {}, options);
  train(*run.trainer, directory, &run.held_back, after_step);
}

void resume(const Path& out, const TrainConfig& config, const ModelOptions& options = {}) {
  const Path checkpoint = newest_checkpoint(out);
  TinyRun run(config, checkpoint, options);
  RunDirectory directory = RunDirectory::resume(out);
  train(*run.trainer, directory, &run.held_back, always);
}

// log.jsonl without what no two runs share.
std::string log_without_seconds(const Path& out) {
  std::string log = read_text(out / "log.jsonl"), result;
  for (size_t at = 0, seconds; (seconds = log.find("\"seconds\":", at)) != std::string::npos;) {
    result += log.substr(at, seconds - at);
    at = log.find_first_of(",}", seconds);
    if (const size_t next = log.find("\"seconds\":", at); next == std::string::npos) result += log.substr(at);
  }
  return result;
}

void expect_same_checkpoint(const Path& left, const Path& right) {
  for (const char* file : {"config.json", "model.safetensors", "optimizer.safetensors", "trainer.json"})
    EXPECT_TRUE(read_text(left / file) == read_text(right / file)) << file << " of " << left << " and " << right;
}

TEST(TrainerRun, LearnsAndWritesItsLog) {
  const ScratchDirectory scratch;
  std::vector<StepResult> results;
  TrainConfig config = tiny_settings(90);
  config.rate.lr = 1e-2;
  config.save_every = 0;
  train_into(scratch.path(), config, [&](const StepResult& result) {
    results.push_back(result);
    return GoOn::yes;
  });
  ASSERT_EQ(results.size(), 90u);
  EXPECT_NEAR(results[0].loss, std::log(32.0), 0.1);
  // What the text leaves open: the next number comes with 97/128, each other with 1/128. About 1.39 nats.
  const double entropy = -(97.0 / 128 * std::log(97.0 / 128) + 31.0 / 128 * std::log(1.0 / 128));
  ASSERT_TRUE(results[87].eval_loss);
  EXPECT_GT(*results[87].eval_loss, entropy - 0.2);
  EXPECT_LT(*results[87].eval_loss, 2.6);
  EXPECT_FALSE(results[89].eval_loss);
  EXPECT_TRUE(read_text(scratch.path() / "log.jsonl").ends_with(results[89].json() + "\n"));
  EXPECT_EQ(results[9].step, 10);
  EXPECT_EQ(results[9].tokens, 4 * 13);
  EXPECT_EQ(results[3].lr, 1e-2 * (4.0 / 5));
}

TEST(TrainerRun, TwiceGivesTheSameBits) {
  const ScratchDirectory scratch;
  for (const char* name : {"a", "b"}) train_into(scratch.path() / name, tiny_settings());
  expect_same_checkpoint(scratch.path() / "a" / "step-20", scratch.path() / "b" / "step-20");
  EXPECT_EQ(log_without_seconds(scratch.path() / "a"), log_without_seconds(scratch.path() / "b"));
}

TEST(TrainerRun, TenAndTenStepsAreTwenty) {
  const ScratchDirectory scratch;
  const Path whole = scratch.path() / "whole", parts = scratch.path() / "parts";
  train_into(whole, tiny_settings(20));
  train_into(parts, tiny_settings(10));
  EXPECT_FALSE(read_text(whole / "step-20" / "model.safetensors") ==
               read_text(parts / "step-10" / "model.safetensors"));
  resume(parts, tiny_settings(20));
  expect_same_checkpoint(whole / "step-20", parts / "step-20");
  EXPECT_EQ(log_without_seconds(whole), log_without_seconds(parts));
}

TEST(TrainerRun, AnInterruptedRunGoesOnAsIfItHadNotBeen) {
  const ScratchDirectory scratch;
  const Path whole = scratch.path() / "whole", parts = scratch.path() / "parts";
  TrainConfig config = tiny_settings(20);
  config.rate.schedule = "cosine";
  config.accumulate = 2;
  train_into(whole, config);
  train_into(parts, config, [](const StepResult& result) { return result.step == 7 ? GoOn::no : GoOn::yes; });
  EXPECT_EQ(newest_checkpoint(parts), parts / "step-7");
  resume(parts, config);
  expect_same_checkpoint(whole / "step-20", parts / "step-20");
  EXPECT_EQ(log_without_seconds(whole), log_without_seconds(parts));
}

// Steps that begin ahead of the log, from a graph or not, leave the same files; an interrupt waits for what has begun.
TEST(TrainerCuda, GraphsAndInterruptsLeaveTheSameRun) {
  if (skipped_for_want_of_gpu()) return;
  const ScratchDirectory scratch;
  const ModelOptions gpu{.device = Device::cuda()};
  const Path whole = scratch.path() / "whole", plain = scratch.path() / "plain", parts = scratch.path() / "parts";
  TrainConfig config = tiny_settings(30);
  config.rate.schedule = "cosine";
  config.accumulate = 2;
  train_into(whole, config, always, gpu);
  int64_t told = 0;
  train_into(
      parts, config,
      [&](const StepResult& result) {
        EXPECT_EQ(result.step, ++told);
        return result.step == 11 || result.step == 12 ? GoOn::no : GoOn::yes;
      },
      gpu);
  EXPECT_EQ(told, 12);  // which had begun
  EXPECT_EQ(newest_checkpoint(parts), parts / "step-12");
  resume(parts, config, gpu);
  expect_same_checkpoint(whole / "step-30", parts / "step-30");
  EXPECT_EQ(log_without_seconds(whole), log_without_seconds(parts));
  config.cuda_graph = "off";
  train_into(plain, config, always, gpu);
  for (const char* file : {"model.safetensors", "optimizer.safetensors"})
    EXPECT_TRUE(read_text(whole / "step-30" / file) == read_text(plain / "step-30" / file)) << file;
  EXPECT_EQ(log_without_seconds(whole), log_without_seconds(plain));
}

TEST(TrainerRun, AccumulationEqualsTheLargeBatch) {
  TrainConfig large = tiny_settings(), small = tiny_settings();
  large.batch = 8;
  small.batch = 2;
  small.accumulate = 4;
  TinyRun one(large), four(small);
  for (int i = 0; i < 3; ++i) {
    const StepResult a = one.trainer->step(), b = four.trainer->step();
    EXPECT_NEAR(a.loss, b.loss, 1e-6);
    EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-6 * a.grad_norm);
    EXPECT_EQ(a.tokens, b.tokens);
    for (const auto& param : one.model->params().all()) {
      const Tensor left = param->var.grad->value, right = four.model->params().find(param->name)->var.grad->value;
      for (int64_t k = 0; k < left.count(); ++k)
        ASSERT_NEAR(left.data<float>()[k], right.data<float>()[k], 1e-6) << param->name << " " << k;
    }
  }
}

TEST(TrainerRun, AccumulationEqualsTheLargeBatchInDoubleToTheLastDigits) {
  const ModelOptions reference{.device = Device::ref(), .dtype = DType::f64};
  TrainConfig large = tiny_settings(), small = tiny_settings();
  large.batch = 4;
  small.batch = 1;
  small.accumulate = 4;
  TinyRun one(large, {}, reference), four(small, {}, reference);
  for (int i = 0; i < 2; ++i) EXPECT_NEAR(one.trainer->step().loss, four.trainer->step().loss, 1e-13);
  for (const auto& param : one.model->params().all()) {
    const Tensor left = param->var.value, right = four.model->params().find(param->name)->var.value;
    for (int64_t k = 0; k < left.count(); ++k)
      ASSERT_NEAR(left.data<double>()[k], right.data<double>()[k], 1e-10) << param->name << " " << k;
  }
}

TEST(TrainerRun, EvaluationIsTheMeanOverAllTargets) {
  TinyRun run(tiny_settings());
  const double in_windows = run.trainer->evaluate(run.held_back);
  // The same sequences, one at a time.
  const SequentialWindows one_by_one(run.tokens, run.split.validation, 1, 13);
  EXPECT_NEAR(in_windows, run.trainer->evaluate(one_by_one), 1e-6);
  EXPECT_NEAR(in_windows, std::log(32.0), 0.1);
}

TEST(TrainerRun, ALossThatIsNoNumberNamesStepAndParameterAndKeepsTheCheckpoint) {
  const ScratchDirectory scratch;
  RunDirectory directory = RunDirectory::start(scratch.path());
  TinyRun run(tiny_settings());
  constexpr const char* kBroken = "backbone.layers.1.mixer.out_proj.weight";
  const auto weights = [&] { return read_text(newest_checkpoint(scratch.path()) / "model.safetensors"); };
  std::string before;
  EXPECT_TRUE(fails_with(text("step 8: the loss is "), [&] {
    train(*run.trainer, directory, &run.held_back, [&](const StepResult& result) {
      if (result.step != 7) return GoOn::yes;
      before = weights();
      run.model->params().find(kBroken)->var.value.data<float>()[5] = std::numeric_limits<float>::quiet_NaN();
      return GoOn::yes;
    });
  }));
  EXPECT_TRUE(fails_with(text("parameter ", kBroken, " is NaN or infinite"), [&] { run.trainer->step(); }));
  EXPECT_EQ(run.trainer->state().step, 7);
  EXPECT_EQ(newest_checkpoint(scratch.path()), scratch.path() / "step-5");
  EXPECT_TRUE(weights() == before);
  EXPECT_EQ(read_text(scratch.path() / "log.jsonl").find("\"step\":8"), std::string::npos);
}

TEST(TrainerRun, NoStepAfterTheSecondAsksTheSystemForMemory) {
  TinyRun run(tiny_settings());
  run.trainer->step();
  run.trainer->step();
  const int64_t calls = memory_stats().system_calls;
  for (int i = 0; i < 10; ++i) run.trainer->step();
  EXPECT_EQ(memory_stats().system_calls, calls);
  EXPECT_FALSE(run.trainer->saved_bytes().empty());
}

TEST(TrainerRun, MemoryDoesNotHoldTokensTimesVocabulary) {
  constexpr int64_t kVocab = 16384, kShort = 200, kLong = 600;
  const auto peaks = [](int64_t length) {  // of a step and of an evaluation
    TrainConfig config = tiny_settings();
    config.length = length;
    TinyRun run(config, {}, {}, kVocab);
    reset_memory_peak();
    run.trainer->step();
    const int64_t step = memory_stats().peak;
    reset_memory_peak();
    run.trainer->evaluate(SequentialWindows(run.tokens, run.split.train, config.batch, length));
    return std::pair(step, memory_stats().peak);
  };
  const auto [short_step, short_evaluation] = peaks(kShort);
  const auto [long_step, long_evaluation] = peaks(kLong);
  // Logits of the longer batch's further 1,600 tokens would take 100 MiB. The shorter batch's take 50 MiB: both are
  // beyond the part of the logits that cross-entropy holds at a time.
  const int64_t logits = tiny_settings().batch * (kLong - kShort) * kVocab * int64_t{sizeof(float)};
  EXPECT_LT(long_step - short_step, logits / 8);
  EXPECT_LT(long_evaluation - short_evaluation, logits / 8);
}

TEST(TrainerRun, ACheckpointIsAModelAndSoIsItsRun) {
  const ScratchDirectory scratch;
  train_into(scratch.path(), tiny_settings(5));
  const auto whole = Model::open(scratch.path(), {}), step = Model::open(scratch.path() / "step-5", {});
  for (const auto& param : whole->params().all())
    EXPECT_EQ(param->var.value.data<float>()[0], step->params().find(param->name)->var.value.data<float>()[0]);
  write_file(scratch.path() / "latest", "step-9");
  EXPECT_TRUE(fails_with("names no checkpoint", [&] { Model::open(scratch.path(), {}); }));
}

TEST(TrainerRun, ADamagedCheckpointIsAnError) {
  const ScratchDirectory scratch;
  train_into(scratch.path(), tiny_settings(5));
  const Path checkpoint = newest_checkpoint(scratch.path()), trainer = checkpoint / "trainer.json";
  const std::string good = read_text(trainer);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = good;
    changed.replace(changed.find(from), from.size(), to);
    write_file(trainer, changed);
    return [checkpoint] { read_training_state(checkpoint); };
  };
  EXPECT_NO_THROW(read_training_state(checkpoint));
  EXPECT_TRUE(fails_with("version 9", with("\"version\": 1", "\"version\": 9")));
  EXPECT_TRUE(fails_with("says step 6, its directory is called step-5", with("\"step\": 5", "\"step\": 6")));
  EXPECT_TRUE(fails_with("did you mean \"tokens\"", with("\"version\"", "\"toknes\": 1, \"version\"")));
  EXPECT_TRUE(fails_with("--batch 0", with("\"batch\": 4", "\"batch\": 0")));
  EXPECT_TRUE(fails_with("is not JSON", with("{", "")));
  write_file(trainer, good);
  std::filesystem::resize_file(checkpoint / "optimizer.safetensors", 1000);
  EXPECT_TRUE(fails_with("optimizer.safetensors", [&] { TinyRun(tiny_settings(), checkpoint); }));
}

// A child process trains, saving every step, until it is killed somewhere; then another goes on. Afterwards the run
// is as if nothing had happened.
TEST(TrainerRunSlow, KilledAtAnyMomentIsResumable) {
  constexpr int kKills = 30;
  const ScratchDirectory scratch;
  const Path killed = scratch.path() / "killed", whole = scratch.path() / "whole";
  TrainConfig config = tiny_settings(1 << 20);
  config.save_every = 1;
  config.keep = 2;
  config.eval_every = 0;
  const Rng rng(11, "moments");
  int64_t step = -1, kills_without_checkpoint = 0;
  for (uint64_t i = 0; i < kKills; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        if (step < 0)
          train_into(killed, config);
        else
          resume(killed, config);
      } catch (const std::exception& problem) {
        std::fprintf(stderr, "child %d: %s\n", static_cast<int>(i), problem.what());
      }
      _exit(1);  // it should have been killed
    }
    std::this_thread::sleep_for(std::chrono::microseconds(2000 + rng.below(i, 250'000)));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";

    if (step < 0 && !std::filesystem::exists(killed / "latest")) {
      ++kills_without_checkpoint;  // not a run yet: it starts again
      continue;
    }
    const Path checkpoint = newest_checkpoint(killed);
    const TinyRun resumed(config, checkpoint);  // opens all of it
    EXPECT_GE(resumed.trainer->state().step, step);
    step = resumed.trainer->state().step;
  }
  ASSERT_GT(step, 0) << kills_without_checkpoint << " children were killed before their first checkpoint";
  RecordProperty("steps", static_cast<int>(step));

  config.rate.steps = step + 3;
  resume(killed, config);
  config.save_every = 0;
  train_into(whole, config);
  const std::string name = text("step-", step + 3);
  for (const char* file : {"model.safetensors", "optimizer.safetensors"})
    EXPECT_TRUE(read_text(killed / name / file) == read_text(whole / name / file)) << file;
  EXPECT_EQ(log_without_seconds(killed), log_without_seconds(whole));
}

}  // namespace
}  // namespace ssm
