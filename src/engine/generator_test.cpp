// Generation and its state: a run that is cut and continued, in memory or through a file, writes what one run writes.
#include "engine/generator.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/files.h"
#include "core/rng.h"
#include "engine/state_file.h"
#include "formats/test_files.h"

namespace ssm {
namespace {

Threads& some_threads() {
  static Threads threads(2);
  return threads;
}

std::unique_ptr<Model> small_model(uint64_t seed = 1, const ModelOptions& options = {}, int64_t d_model = 24) {
  const std::string config = text(R"({"d_model": )", d_model, R"(, "n_layer": 2, "vocab_size": 37})");
  return Model::create(ModelConfig::from_json(config, "test"), seed, options);
}

// A generator with a pool of its own.
struct Sequence {
  explicit Sequence(const Model& model)
      : pool(model.lm().state_spec(), 1), generator(model, some_threads(), pool, pool.acquire()) {}
  StatePool pool;
  Generator generator;
};

std::vector<int64_t> write(Generator& generator, int64_t tokens, const SamplerOptions& sampler = {}) {
  std::vector<int64_t> ids;
  generator.write({.sampler = sampler, .seed = 5, .max_tokens = tokens}, [&](const WrittenToken& token) {
    ids.push_back(token.id);
    return true;
  });
  return ids;
}

const std::vector<int64_t> kPrompt = {3, 1, 4, 1, 5, 9, 2, 6};

TEST(Generator, ARunInPartsWritesWhatOneRunWrites) {
  const ScratchDirectory scratch;
  const Path file = scratch.path() / "state";
  const SamplerOptions sampler{
      .temperature = 1.3, .top_p = 0.9, .repetition_penalty = 1.2, .frequency_penalty = 0.3, .presence_penalty = 0.2};
  for (const DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    const auto model = small_model(1, {.device = dtype == DType::f64 ? Device::ref() : Device::cpu(), .dtype = dtype});
    Sequence whole(*model);
    whole.generator.read(kPrompt);
    const std::vector<int64_t> right = write(whole.generator, 30, sampler);
    for (const int64_t cut : {0, 1, 17}) {
      Sequence first(*model), second(*model);
      first.generator.read(kPrompt);
      std::vector<int64_t> ids = write(first.generator, cut, sampler);
      write_state_file(file, *model, first.generator.snapshot());
      second.generator.restore(read_state_file(file, *model));
      EXPECT_EQ(second.generator.tokens(), 8 + cut);
      for (const int64_t id : write(second.generator, 30 - cut, sampler)) ids.push_back(id);
      EXPECT_EQ(ids, right) << name_of(dtype) << " cut at " << cut;
      // The first goes on too: a snapshot takes nothing away.
      const std::vector<int64_t> more = write(first.generator, 3, sampler);
      EXPECT_TRUE(std::equal(more.begin(), more.end(), right.begin() + cut));
    }
  }
}

TEST(Generator, SeedsReproduceAndDiffer) {
  const auto model = small_model();
  const auto run = [&](uint64_t seed) {
    Sequence sequence(*model);
    sequence.generator.read(kPrompt);
    std::vector<int64_t> ids;
    sequence.generator.write({.seed = seed, .max_tokens = 40}, [&](const WrittenToken& token) {
      ids.push_back(token.id);
      return true;
    });
    return ids;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(Generator, APromptInPiecesIsThePrompt) {
  const auto model = small_model(1, {.device = Device::ref(), .dtype = DType::f64});
  std::vector<int64_t> prompt;
  const Rng rng(4, "prompt");
  for (uint64_t i = 0; i < 1100; ++i) prompt.push_back(static_cast<int64_t>(rng.below(i, 37)));
  Sequence whole(*model), pieces(*model);
  whole.generator.read(prompt);  // in chunks of kChunk
  for (size_t begin = 0; begin < prompt.size(); begin += 100)
    pieces.generator.read(std::span(prompt).subspan(begin, 100));
  EXPECT_EQ(whole.generator.snapshot().state, pieces.generator.snapshot().state);
  EXPECT_EQ(write(whole.generator, 20), write(pieces.generator, 20));
}

TEST(Generator, RowsThatPadTheVocabularyNeverCome) {
  const auto model = small_model();
  ASSERT_EQ(model->config().padded_vocab(), 40);
  // Padding rows whose logits would always win.
  const Tensor embedding = model->params().find("backbone.embedding.weight")->var.value;  // (40, d)
  Sequence probe(*model);
  probe.generator.read(kPrompt);
  const Tensor output = probe.generator.snapshot().output;  // (d)
  for (int64_t row = 37; row < 40; ++row)
    for (int64_t c = 0; c < 24; ++c) embedding.matrix<float>()[row][c] = 100 * output.data<float>()[c];
  Sequence sequence(*model);
  sequence.generator.read(kPrompt);
  for (const double temperature : {0.0, 1.0})
    for (const int64_t id : write(sequence.generator, 50, {.temperature = temperature})) EXPECT_LT(id, 37);
}

TEST(Generator, EndsAtEndOfTextAndWhenTold) {
  const auto model = small_model();
  Sequence sequence(*model);
  sequence.generator.read(kPrompt);
  const Snapshot start = sequence.generator.snapshot();
  const std::vector<int64_t> ids = write(sequence.generator, 20);
  sequence.generator.restore(start);
  int64_t count = 0;
  const auto counting = [&](const WrittenToken&) { return ++count < 3; };
  EXPECT_EQ(sequence.generator.write({.seed = 5, .max_tokens = 20}, counting), Finish::stopped);
  EXPECT_EQ(count, 3);
  sequence.generator.restore(start);
  const auto all = [](const WrittenToken&) { return true; };
  EXPECT_EQ(sequence.generator.write({.seed = 5, .max_tokens = 20, .end_ids = {36 - ids[0], ids[0]}}, all),
            Finish::end_of_text);
  EXPECT_EQ(sequence.generator.tokens(), 9);
}

TEST(Generator, WhatCannotBeReadIsAnError) {
  const auto model = small_model();
  Sequence sequence(*model);
  EXPECT_TRUE(fails_with("nothing was read", [&] { write(sequence.generator, 1); }));
  EXPECT_TRUE(fails_with("outside the vocabulary, expected 0 to 36", [&] { sequence.generator.read({{1, 37}}); }));
  EXPECT_TRUE(fails_with("outside the vocabulary", [&] { sequence.generator.read({{-1}}); }));
  EXPECT_EQ(sequence.generator.tokens(), 0);
}

TEST(StateFile, IsRefusedByAnotherModel) {
  const ScratchDirectory scratch;
  const Path file = scratch.path() / "state";
  const auto model = small_model();
  Sequence sequence(*model);
  EXPECT_TRUE(fails_with("nothing was read", [&] { write_state_file(file, *model, sequence.generator.snapshot()); }));
  EXPECT_FALSE(std::filesystem::exists(file));
  sequence.generator.read(kPrompt);
  write_state_file(file, *model, sequence.generator.snapshot());
  EXPECT_TRUE(fails_with("another config", [&] { read_state_file(file, *small_model(1, {}, 32)); }));
  EXPECT_TRUE(fails_with("other weights", [&] { read_state_file(file, *small_model(2)); }));
  EXPECT_TRUE(fails_with("--dtype f32", [&] { read_state_file(file, *small_model(1, {.dtype = DType::bf16})); }));
  EXPECT_TRUE(fails_with("is empty", [&] { read_state_file(scratch.file("empty", ""), *model); }));
  // Any change of any parameter that reaches its first, last or sampled elements is another model; all of them here.
  for (const auto& param : model->params().all()) {
    const Tensor& value = param->var.value;
    float* const last = static_cast<float*>(value.raw()) + value.count() - 1;
    const float before = *last;
    *last += 1;
    EXPECT_TRUE(fails_with("other weights", [&] { read_state_file(file, *model); })) << param->name;
    *last = before;
  }
  EXPECT_NO_THROW(read_state_file(file, *model));
  std::string old = read_text(file);
  old.replace(old.find(R"("ssm_state":"2")"), 15, R"("ssm_state":"1")");
  EXPECT_TRUE(fails_with("has version 1 of the state format, expected 2",
                         [&] { read_state_file(scratch.file("old", old), *model); }));
  model->save(scratch.path());
  EXPECT_TRUE(fails_with("is no state file", [&] { read_state_file(scratch.path() / "model.safetensors", *model); }));
}

// Bits flipped, bytes replaced, ends cut off: refused, or the same state.
TEST(StateFile, DamageIsFound) {
  const ScratchDirectory scratch;
  const auto model = small_model();
  Sequence sequence(*model);
  sequence.generator.read(kPrompt);
  write(sequence.generator, 9);
  const Path file = scratch.path() / "state";
  write_state_file(file, *model, sequence.generator.snapshot());
  const Snapshot right = read_state_file(file, *model);
  const std::string whole = read_text(file);
  const Rng rng(6, "mutations");
  int refused = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    std::string damaged = whole;
    const uint64_t header = 600;  // half of the mutations in the part that is parsed
    const size_t at = rng.below(4 * i, i % 2 ? header : whole.size());
    if (i % 5 == 0)
      damaged.resize(at);
    else if (i % 5 < 3)
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << rng.below(4 * i + 1, 8)));
    else
      damaged[at] = static_cast<char>(rng.below(4 * i + 2, 256));
    try {
      const Snapshot read = read_state_file(scratch.file("damaged", damaged), *model);
      EXPECT_EQ(read.state, right.state) << "mutation " << i;
      EXPECT_EQ(read.tokens, right.tokens) << "mutation " << i;
      EXPECT_EQ(read.written, right.written) << "mutation " << i;
      EXPECT_EQ(read.seen, right.seen) << "mutation " << i;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 900);
}

}  // namespace
}  // namespace ssm
