// The generators against the definitions of the tasks, accuracy in chunks against accuracy in one call, and small runs
// that learn their task.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "task/task_run.h"

namespace ssm {
namespace {

struct Sequence {
  std::vector<int64_t> ids, targets;
};

Sequence sequence(const TaskShape& shape, int64_t index, uint64_t seed = 3, const std::string& stream = "train") {
  const auto inputs = static_cast<size_t>(shape.inputs());
  Sequence result{std::vector<int64_t>(inputs), std::vector<int64_t>(inputs)};
  make_sequence(shape, seed, stream, index, result.ids, result.targets);
  return result;
}

TEST(TaskGenerators, SelectiveCopyingAnswersTheSymbolsInOrder) {
  const TaskShape shape{.kind = TaskKind::selective_copying, .vocab = 7, .length = 20, .memory = 4};
  std::map<size_t, int> places;
  std::map<int64_t, int> symbols;
  for (int64_t i = 0; i < 6000; ++i) {
    const Sequence one = sequence(shape, i);
    ASSERT_EQ(one.ids.size(), 28U);
    std::vector<int64_t> found, asked;
    for (size_t t = 0; t < 24; ++t) {
      EXPECT_EQ(one.targets[t], kIgnoredTarget);
      if (one.ids[t] == 0) continue;
      found.push_back(one.ids[t]);
      ++places[t];
      ++symbols[one.ids[t]];
    }
    for (size_t t = 24; t < 28; ++t) {
      EXPECT_EQ(one.ids[t], 6);
      asked.push_back(one.targets[t]);
    }
    ASSERT_EQ(found.size(), 4U);
    ASSERT_EQ(found, asked);
  }
  // Each of 24 places holds a symbol with probability 1/6, each of 5 symbols is one draw in 5: five deviations.
  ASSERT_EQ(places.size(), 24U);
  for (const auto& [place, times] : places) EXPECT_NEAR(times, 1000, 145) << place;
  ASSERT_EQ(symbols.size(), 5U);
  EXPECT_EQ(symbols.begin()->first, 1);
  for (const auto& [symbol, times] : symbols) EXPECT_NEAR(times, 4800, 310) << symbol;
}

TEST(TaskGenerators, CopyingHasTheSymbolsInFront) {
  const TaskShape shape{.kind = TaskKind::copying, .vocab = 16, .length = 9, .memory = 3};
  const Sequence one = sequence(shape, 5);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_GT(one.ids[i], 0);
    EXPECT_EQ(one.ids[i], one.targets[12 + i]);
  }
  EXPECT_EQ(std::count(one.ids.begin() + 3, one.ids.begin() + 12, 0), 9);
}

TEST(TaskGenerators, InductionHeadsAnswersWhatFollowedTheTrigger) {
  TaskShape shape{.kind = TaskKind::induction_heads, .vocab = 16, .length = 20, .triggers = 3};
  std::map<int64_t, int> triggers, answers;
  for (int64_t i = 0; i < 4000; ++i) {
    const Sequence one = sequence(shape, i);
    ASSERT_EQ(one.ids.size(), 20U);
    ASSERT_EQ(one.ids.back(), 15);
    const int64_t answer = one.targets.back();
    ++answers[answer];
    int64_t seen = 0;
    for (size_t t = 0; t + 1 < one.ids.size(); ++t) {
      EXPECT_EQ(one.targets[t], kIgnoredTarget);
      if (one.ids[t] != 15) continue;
      ++seen;
      EXPECT_EQ(one.ids[t + 1], answer) << i;
    }
    ++triggers[seen];
  }
  EXPECT_EQ(answers.size(), 14U);
  for (const auto& [answer, times] : answers) EXPECT_NEAR(times, 4000.0 / 14, 82) << answer;
  EXPECT_EQ(triggers.count(0), 0U);
  EXPECT_GT(triggers[1], 2000);  // half of them, and those that lost two to the distance between triggers
  EXPECT_GT(triggers[3], 500);

  shape.every_token = true;
  const Sequence all = sequence(shape, 7);
  for (size_t t = 0; t + 1 < all.ids.size(); ++t) EXPECT_EQ(all.targets[t], all.ids[t + 1]);
  EXPECT_GE(all.targets.back(), 0);
}

TEST(TaskGenerators, MqarAsksEveryKeyOnceAndMostlySoon) {
  const TaskShape shape{.kind = TaskKind::mqar, .vocab = 64, .length = 40, .memory = 5};
  double early = 0, late = 0;
  for (int64_t i = 0; i < 500; ++i) {
    const Sequence one = sequence(shape, i);
    std::map<int64_t, int64_t> value_of;
    for (size_t k = 0; k < 5; ++k) {
      EXPECT_TRUE(one.ids[2 * k] >= 1 && one.ids[2 * k] < 32);
      EXPECT_TRUE(one.ids[2 * k + 1] >= 32 && one.ids[2 * k + 1] < 64);
      value_of[one.ids[2 * k]] = one.ids[2 * k + 1];
    }
    ASSERT_EQ(value_of.size(), 5U);
    std::set<int64_t> asked;
    for (size_t t = 0; t < one.ids.size(); ++t) {
      if (one.targets[t] == kIgnoredTarget) continue;
      EXPECT_GE(t, 10U);
      EXPECT_EQ(one.targets[t], value_of.at(one.ids[t]));
      asked.insert(one.ids[t]);
      (t < 25 ? early : late) += 1;
    }
    EXPECT_EQ(asked.size(), 5U);
  }
  EXPECT_GT(early, 1.5 * late);
}

TEST(TaskGenerators, AreFunctionsOfSeedStreamAndIndex) {
  const TaskShape shape{.length = 30};
  EXPECT_EQ(sequence(shape, 4).ids, sequence(shape, 4).ids);
  EXPECT_NE(sequence(shape, 4).ids, sequence(shape, 5).ids);
  EXPECT_NE(sequence(shape, 4).ids, sequence(shape, 4, 9).ids);
  EXPECT_NE(sequence(shape, 4).ids, sequence(shape, 4, 3, "test").ids);
}

TEST(TaskGenerators, CurriculumDoublesToTheFullLength) {
  const TaskStream stream({.length = 100}, 0, 2, 40, 16);  // 16, 32, 64, then 100
  EXPECT_EQ(stream.length(0), 16);
  EXPECT_EQ(stream.length(14), 32);
  EXPECT_EQ(stream.length(39), 64);
  EXPECT_EQ(stream.length(40), 100);
  EXPECT_EQ(stream.batch(0).length, 16 + 32);
  EXPECT_EQ(stream.batch(40).inputs.count(), 2 * 132);
}

TEST(TaskGenerators, CurriculumOfMqarHasFewerPairs) {
  const TaskStream stream({.kind = TaskKind::mqar, .vocab = 64, .length = 64, .memory = 16}, 0, 1, 40, 8);
  const auto asked = [&](int64_t step) {
    const TokenBatch batch = stream.batch(step);
    const auto targets = batch.targets.span<int64_t>();
    return std::count_if(targets.begin(), targets.end(), [](int64_t id) { return id != kIgnoredTarget; });
  };
  EXPECT_EQ(asked(0), 2);
  EXPECT_EQ(asked(39), 8);
  EXPECT_EQ(asked(40), 16);
}

TaskConfig small(const std::string& task, const std::string& mixer = "mamba") {
  TaskConfig config;
  config.task = task;
  config.mixer = mixer;
  config.d_model = 32;
  config.eval_sequences = 32;
  return config;
}

TEST(TaskRun, AccuracyInChunksIsThatOfOneCall) {
  TaskConfig config = small("selective-copying");
  config.length = 50, config.memory = 3;
  config.settle();
  const auto model = Model::create(config.model(), 1, {.device = Device::cpu()});
  Threads threads(2);
  const auto measured = [&](int64_t at_once, int64_t in_memory) {
    return accuracy(*model, threads, config.shape(50), 1,
                    {.sequences = 40, .tokens_at_once = at_once, .tokens_in_memory = in_memory});
  };
  const Accuracy whole = measured(1 << 20, 1 << 20);
  EXPECT_EQ(whole.answers, 120);
  EXPECT_EQ(whole.sequences, 40);
  EXPECT_GT(whole.right, 0);  // 3 of 40 by chance
  for (const auto& [at_once, in_memory] : {std::pair<int64_t, int64_t>{7 * 40, 1 << 20}, {64, 500}}) {
    const Accuracy chunked = measured(at_once, in_memory);
    EXPECT_EQ(chunked.right, whole.right);
    EXPECT_EQ(chunked.whole, whole.whole);
    EXPECT_EQ(chunked.answers, whole.answers);
  }
}

TEST(TaskRun, MambaLearnsInductionHeadsInSeconds) {
  TaskConfig config = small("induction-heads");
  config.length = 16, config.rate.steps = 3000, config.rate.lr = 3e-3, config.eval_every = 50, config.stop_after = 1;
  config.test_lengths = {8, 16};
  config.settle();
  const auto model = Model::create(config.model(), 1, {.device = Device::cpu(), .trainable = true});
  Threads threads(2);
  const TaskResult result = run_task(*model, config, 1, threads, {});
  EXPECT_EQ(result.ended, "solved");
  EXPECT_LT(result.steps, 3000);
  ASSERT_EQ(result.tests.size(), 2U);
  EXPECT_EQ(result.tests[1].accuracy.token(), 1);
}

TEST(TaskRun, InterruptionKeepsWhatThereIs) {
  TaskConfig config = small("copying");
  config.length = 8, config.memory = 2, config.eval_every = 2;
  config.settle();
  const auto model = Model::create(config.model(), 1, {.device = Device::cpu(), .trainable = true});
  Threads threads(1);
  int64_t steps = 0;
  TaskObserver observer;
  observer.step = [&](const StepResult&) { ++steps; };
  observer.go_on = [&] { return steps < 5; };
  const TaskResult result = run_task(*model, config, 1, threads, observer);
  EXPECT_EQ(result.ended, "interrupted");
  EXPECT_EQ(result.steps, 5);
  EXPECT_EQ(result.evaluations.size(), 2U);
  EXPECT_TRUE(result.tests.empty());
}

TEST(TaskConfig, SaysWhatIsWrong) {
  const auto message = [](TaskConfig config) -> std::string {
    try {
      config.settle();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(small("copying")), "");
  EXPECT_NE(message(small("selective-coping")).find("did you mean selective-copying?"), std::string::npos);
  EXPECT_NE(message(small("copying", "hyena")).find("expected one of mamba, mamba2"), std::string::npos);
  TaskConfig pairs = small("mqar");
  pairs.vocab = 16, pairs.memory = 8;
  EXPECT_NE(message(pairs).find("memory is 8, expected less than half the vocabulary of 16"), std::string::npos);
}

TEST(TaskConfig, PublishedSettingsAreTheDefault) {
  TaskConfig config;
  config.task = "selective-copying";
  config.settle();
  EXPECT_EQ(config.shape(config.length).inputs(), 4096 + 2 * 16);
  EXPECT_EQ(config.batch, 64);
  EXPECT_EQ(config.rate.steps, 400000);
  EXPECT_EQ(config.rate.lr, 1e-4);
  EXPECT_EQ(config.model().d_model, 64);
  TaskConfig heads;
  heads.task = "induction-heads", heads.mixer = "attention";
  heads.settle();
  EXPECT_EQ(heads.model().d_model, 128);
  EXPECT_EQ(heads.test_lengths.back(), 1 << 20);
}

}  // namespace
}  // namespace ssm
