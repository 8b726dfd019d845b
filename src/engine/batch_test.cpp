// Sequences in a batch against the same sequences alone, whoever comes and goes beside them: the same tokens, and the
// same bits unless their prompt went through GEMM.
#include "engine/batch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "core/rng.h"
#include "engine/generator.h"
#include "formats/test_files.h"
#include "tests/op_check.h"

namespace ssm {
namespace {

Threads& some_threads() {
  static Threads threads(2);
  return threads;
}

constexpr const char* kSmall = R"({"d_model": 24, "n_layer": 2, "vocab_size": 37})";
// Mamba, then attention, with an MLP in each block and learned positions.
constexpr const char* kHybrid =
    R"({"d_model": 24, "n_layer": 2, "vocab_size": 37, "d_intermediate": 20, "learned_positions": 2000,
        "attn_layer_idx": [1], "attn_cfg": {"causal": true, "num_heads": 3, "num_heads_kv": 1, "rotary_emb_dim": 4}})";

std::unique_ptr<Model> small_model(const ModelOptions& options = {}, const char* config = kSmall) {
  return Model::create(ModelConfig::from_json(config, "test"), 1, options);
}

std::vector<int64_t> some_ids(int64_t count, uint64_t which) {
  const Rng rng(which, "prompt");
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int64_t>(rng.below(static_cast<uint64_t>(i), 37)));
  return ids;
}

struct Request {
  std::vector<int64_t> prompt;
  GenerateOptions options;
};

struct Result {
  std::vector<int64_t> ids;
  Snapshot end;
};

// More requests than may run at once: the next enters when one has finished.
std::vector<Result> together(const Model& model, const std::vector<Request>& requests, int64_t parallel) {
  StatePool pool(model.lm().state_spec(), parallel, model.options().device);
  Batch batch(model, some_threads(), pool);
  std::vector<Result> results(requests.size());
  std::vector<std::unique_ptr<Sequence>> sequences(requests.size());
  size_t next = 0;
  std::function<void()> enter = [&] {
    if (next == requests.size()) return;
    const size_t i = next++;
    sequences[i] = std::make_unique<Sequence>(model, pool, pool.acquire());
    sequences[i]->read(requests[i].prompt);
    batch.add(
        *sequences[i], requests[i].options,
        [&, i](const WrittenToken& token) {
          results[i].ids.push_back(token.id);
          return true;
        },
        [&, i](Finish) {
          Sequence* const done = sequences[i].get();
          batch.feed(std::span(&done, 1));
          results[i].end = done->snapshot();
          pool.release(done->slot());
          enter();
        });
  };
  for (int64_t i = 0; i < parallel; ++i) enter();
  while (batch.step()) EXPECT_LE(batch.size(), parallel);
  return results;
}

Result alone(const Model& model, const Request& request) {
  StatePool pool(model.lm().state_spec(), 1);
  Generator generator(model, some_threads(), pool, pool.acquire());
  generator.read(request.prompt);
  Result result;
  generator.write(request.options, [&](const WrittenToken& token) {
    result.ids.push_back(token.id);
    return true;
  });
  result.end = generator.snapshot();
  return result;
}

void expect_near(const std::vector<std::byte>& found, const std::vector<std::byte>& right, double tolerance) {
  ASSERT_EQ(found.size(), right.size());
  const auto at = [](const std::vector<std::byte>& bytes, size_t i) {
    float value;
    std::memcpy(&value, bytes.data() + i, sizeof value);
    return value;
  };
  for (size_t i = 0; i < found.size(); i += sizeof(float)) ASSERT_NEAR(at(found, i), at(right, i), tolerance);
}

// Prompts from one token to several pieces, different numbers of tokens, every way to sample.
std::vector<Request> some_requests() {
  std::vector<Request> requests;
  uint64_t i = 0;
  for (const int64_t length : {1, 2, 7, 16, 17, 30, 64, 100, 511, 512, 513, 1025, 3, 5, 16, 1, 9, 200, 40, 12, 1, 1}) {
    ++i;
    requests.push_back(
        {some_ids(length, i),
         {.sampler = {.temperature = i % 3 == 0 ? 0 : 1.1, .top_k = i % 4 == 0 ? 7 : 0, .frequency_penalty = 0.2},
          .seed = i,
          .sample = static_cast<int64_t>(i % 2),
          .max_tokens = static_cast<int64_t>(3 + i * 5 % 17)}});
  }
  requests[4].options.max_tokens = 0;
  return requests;
}

TEST(Batch, ASequenceDoesNotDependOnItsNeighbours) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const auto model = small_model({.device = dtype == DType::f64 ? Device::ref() : Device::cpu(), .dtype = dtype});
    const std::vector<Request> requests = some_requests();
    for (const int64_t parallel : {1, 5, 16}) {
      const std::vector<Result> results = together(*model, requests, parallel);
      for (size_t i = 0; i < requests.size(); ++i) {
        const Result right = alone(*model, requests[i]);
        EXPECT_EQ(results[i].ids, right.ids) << name_of(dtype) << ", request " << i << " of " << parallel;
        const bool few = static_cast<int64_t>(requests[i].prompt.size()) <= Batch::kFewRows;
        if (few || dtype == DType::f64)
          EXPECT_TRUE(results[i].end.state == right.end.state) << name_of(dtype) << ", request " << i;
        else
          expect_near(results[i].end.state, right.end.state, 2e-5);
        EXPECT_EQ(results[i].end.seen, right.end.seen);
        EXPECT_EQ(results[i].end.tokens, right.end.tokens);
      }
    }
  }
}

// Beyond kFewRows the products sum in another order: the same text but for rare ties.
TEST(Batch, ManySequencesWriteWhatTheyWriteAlone) {
  const auto model = small_model();
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 40; ++i)
    requests.push_back({some_ids(5, i), {.sampler = {.temperature = 1}, .seed = i, .max_tokens = 10}});
  const std::vector<Result> results = together(*model, requests, 40);
  for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(results[i].ids, alone(*model, requests[i]).ids) << i;
}

// Recorded graphs are padded to sizes of their own, some of which are more than the pool has rows; nothing is recorded
// where a state grows. With penalties the host chooses, without them the GPU.
TEST(BatchCuda, WritesWhatTheCpuWritesAtEveryNumberOfSequences) {
  if (!test::test_devices().front().first.is_cuda() || test::skipped_for_want_of_gpu()) return;
  for (const char* config : {kSmall, kHybrid}) {
    SCOPED_TRACE(config);
    const auto on_cpu = small_model({}, config), on_gpu = small_model({.device = Device::cuda()}, config);
    std::vector<Request> requests = some_requests();
    for (size_t i = 0; i < requests.size(); i += 2) requests[i].options.sampler.frequency_penalty = 0;
    std::vector<Result> expected;
    for (const Request& request : requests) expected.push_back(alone(*on_cpu, request));
    for (const int64_t parallel : {1, 2, 3, 5, 6, 9, 17, 22}) {
      const std::vector<Result> results = together(*on_gpu, requests, parallel);
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(results[i].ids, expected[i].ids) << "request " << i << " of " << parallel;
        EXPECT_EQ(results[i].end.tokens, expected[i].end.tokens);
      }
    }
  }
}

TEST(Batch, SamplesOfOnePromptDifferAndReproduce) {
  const auto model = small_model();
  const Request request{some_ids(20, 3), {.seed = 4, .max_tokens = 12}};
  const auto samples = [&] {
    StatePool pool(model->lm().state_spec(), 9);
    Batch batch(*model, some_threads(), pool);
    Sequence prompt(*model, pool, pool.acquire());
    prompt.read(request.prompt);
    Sequence* const first = &prompt;
    batch.feed(std::span(&first, 1));
    std::vector<std::vector<int64_t>> ids(8);
    std::vector<std::unique_ptr<Sequence>> sequences;
    for (size_t i = 0; i < ids.size(); ++i) {
      sequences.push_back(std::make_unique<Sequence>(*model, pool, pool.acquire()));
      sequences.back()->copy(prompt);
      GenerateOptions options = request.options;
      options.sample = static_cast<int64_t>(i);
      batch.add(
          *sequences.back(), options,
          [&ids, i](const WrittenToken& token) {
            ids[i].push_back(token.id);
            return true;
          },
          [](Finish) {});
    }
    while (batch.step()) continue;
    return ids;
  };
  const auto ids = samples();
  EXPECT_EQ(ids, samples());
  EXPECT_EQ(ids[0], alone(*model, request).ids);
  EXPECT_EQ(std::set(ids.begin(), ids.end()).size(), ids.size());
}

TEST(Batch, EndsEachSequenceInItsOwnWay) {
  const auto model = small_model();
  const std::vector<int64_t> ids = alone(*model, {some_ids(6, 1), {.seed = 2, .max_tokens = 8}}).ids;
  StatePool pool(model->lm().state_spec(), 4);
  Batch batch(*model, some_threads(), pool);
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<Finish> ends(4);
  std::vector<int64_t> counts(4);
  for (size_t i = 0; i < 4; ++i) {
    sequences.push_back(std::make_unique<Sequence>(*model, pool, pool.acquire()));
    EXPECT_TRUE(fails_with("nothing was read", [&] { batch.add(*sequences[i], {}, nullptr, nullptr); }));
    sequences[i]->read(some_ids(6, 1));
    GenerateOptions options{.seed = 2, .max_tokens = i == 3 ? 0 : 8};
    if (i == 1) options.end_ids = {ids[0]};
    batch.add(
        *sequences[i], options,
        [&, i](const WrittenToken& token) {
          EXPECT_EQ(token.id, ids[static_cast<size_t>(counts[i])]);
          return ++counts[i] < 3 || i != 2;
        },
        [&, i](Finish how) { ends[i] = how; });
  }
  while (batch.step()) continue;
  EXPECT_EQ(ends, (std::vector<Finish>{Finish::length, Finish::end_of_text, Finish::stopped, Finish::length}));
  EXPECT_EQ(counts, (std::vector<int64_t>{8, 1, 3, 0}));
}

TEST(Batch, LogprobsAreTheModelsWithTheLikeliestBeside) {
  const auto model = small_model();
  StatePool pool(model->lm().state_spec(), 1);
  Generator generator(*model, some_threads(), pool, pool.acquire());
  generator.read(some_ids(9, 5));
  GenerateOptions options{.sampler = {.temperature = 0, .repetition_penalty = 3}, .max_tokens = 20, .logprobs = true};
  options.top_logprobs = 37;
  bool penalty_mattered = false;
  generator.write(options, [&](const WrittenToken& token) {
    EXPECT_EQ(token.top.size(), 37u);
    double sum = 0;
    for (size_t i = 0; i < token.top.size(); ++i) {
      sum += std::exp(token.top[i].logprob);
      EXPECT_TRUE(i == 0 || token.top[i].logprob <= token.top[i - 1].logprob);
      if (token.top[i].id == token.id) {
        EXPECT_DOUBLE_EQ(token.top[i].logprob, token.logprob);
      }
    }
    EXPECT_NEAR(sum, 1, 1e-6);
    penalty_mattered = penalty_mattered || token.top[0].id != token.id;
    return true;
  });
  EXPECT_TRUE(penalty_mattered);
}

TEST(Batch, ReadingEndsWhenTold) {
  const auto model = small_model();
  StatePool pool(model->lm().state_spec(), 1);
  Generator generator(*model, some_threads(), pool, pool.acquire());
  int asked = 0;
  generator.read(some_ids(2000, 1), [&] { return ++asked < 3; });
  EXPECT_EQ(generator.unread(), 2000 - 2 * Sequence::kPiece);
}

}  // namespace
}  // namespace ssm
