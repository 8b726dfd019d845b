// The checkpoints of tests/golden_hf, as transformers saved them (tools/make_hf_golden.py): logits whole and in chunks,
// greedy continuations, weights in half precision, conversion there and back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/generator.h"
#include "formats/test_files.h"
#include "models/huggingface.h"
#include "models/model.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

// Both sides compute in f32: rounding over sums of some hundred terms and 150 steps, with room for other kernels.
constexpr double kBound = 3e-5;

std::vector<Path> checkpoints() {
  std::vector<Path> all;
  for (const auto& entry : std::filesystem::directory_iterator(Path(SSM_SOURCE_ROOT) / "tests" / "golden_hf"))
    if (entry.is_directory()) all.push_back(entry.path());
  std::sort(all.begin(), all.end());
  return all;
}

TensorMap golden_of(const Path& checkpoint) { return read_safetensors(checkpoint / "golden.safetensors"); }

Tensor logits_in_chunks(const Model& model, const Tensor& ids, int64_t chunk) {
  StatePool pool(model.lm().state_spec(), 1);
  const Ctx ctx{.device = model.options().device, .threads = &test_threads()};
  const Tensor all = Tensor::empty({ids.count(), model.config().padded_vocab()}, DType::f32);
  for (int64_t begin = 0; begin < ids.count(); begin += chunk) {
    const int64_t end = std::min(begin + chunk, ids.count());
    const Var hidden = model.lm().hidden(ctx, ids.rows(begin, end), Seqs::dense(1, end - begin), pool.state());
    all.rows(begin, end).copy_from(model.lm().logits(ctx, hidden).value);
  }
  return all;
}

// The largest difference over the largest expected logit.
double distance(const Tensor& found, const Tensor& expected) {
  EXPECT_EQ(found.shape(), expected.shape());
  double worst = 0, largest = 0;
  for (int64_t i = 0; i < expected.count(); ++i) {
    worst = std::max(worst, std::abs(double{found.data<float>()[i]} - double{expected.data<float>()[i]}));
    largest = std::max(largest, std::abs(double{expected.data<float>()[i]}));
  }
  return worst / largest;
}

TEST(HuggingFace, EveryKindOfModelIsThere) {
  std::set<std::string> kinds;
  for (const Path& path : checkpoints()) kinds.insert(model_type_of(ModelFile::open(path).config));
  EXPECT_EQ(kinds, (std::set<std::string>{"mamba", "mamba2", "falcon_mamba"}));
}

TEST(HuggingFace, LogitsWholeAndInChunks) {
  for (const Path& path : checkpoints()) {
    const auto model = Model::open(path, {.as_stored = true});
    const TensorMap golden = golden_of(path);
    const Tensor ids = golden.at("ids"), expected = golden.at("logits");
    for (const int64_t chunk : {1, 13, 64, 150})
      EXPECT_LE(distance(logits_in_chunks(*model, ids, chunk), expected), kBound) << path.filename() << " by " << chunk;
    for (const int64_t length : {1, 2, 31, 33, 100})
      EXPECT_LE(distance(logits_in_chunks(*model, ids.rows(0, length), length), expected.rows(0, length)), kBound)
          << path.filename() << ", the first " << length;
  }
}

TEST(HuggingFace, LogitsOnRef) {
  for (const Path& path : checkpoints()) {
    const auto model = Model::open(path, {.device = Device::ref()});
    const TensorMap golden = golden_of(path);
    EXPECT_LE(distance(logits_in_chunks(*model, golden.at("ids"), 64), golden.at("logits")), kBound) << path.filename();
  }
}

TEST(HuggingFace, GreedyContinuations) {
  constexpr int64_t kShort = 11;
  for (const Path& path : checkpoints()) {
    const auto model = Model::open(path, {.as_stored = true});
    const TensorMap golden = golden_of(path);
    const Tensor ids = golden.at("ids");
    for (const bool is_short : {true, false}) {
      StatePool pool(model->lm().state_spec(), 1);
      Generator generator(*model, test_threads(), pool, pool.acquire());
      generator.read(ids.rows(0, is_short ? kShort : ids.count()).span<int64_t>());
      const Tensor right = golden.at(is_short ? "greedy.short" : "greedy.long");
      std::vector<int64_t> written;
      generator.write({.sampler = {.temperature = 0}, .max_tokens = right.count()}, [&](const WrittenToken& token) {
        written.push_back(token.id);
        return true;
      });
      EXPECT_TRUE(std::equal(written.begin(), written.end(), right.data<int64_t>())) << path.filename();
    }
  }
}

// A checkpoint whose every tensor is in half precision opens as it is, and arithmetic stays f32: the same bound.
TEST(HuggingFace, HalfPrecisionFilesAreComputedInF32) {
  for (const Path& path : checkpoints())
    for (const DType dtype : {DType::bf16, DType::f16}) {
      const ScratchDirectory scratch;
      const ModelFile file = ModelFile::open(path);
      NamedTensors halved;
      for (const auto& [name, tensor] : file.tensors) halved.emplace_back(file.published.at(name), tensor.to(dtype));
      write_checkpoint(scratch.path(), file.config_json, halved);
      const auto model = Model::open(scratch.path(), {.as_stored = true});
      EXPECT_EQ(model->options().dtype, dtype);
      const TensorMap golden = golden_of(path);
      const Tensor expected = golden.at(text("logits.", name_of(dtype)));
      const double found = distance(logits_in_chunks(*model, golden.at("ids").rows(0, expected.size(0)), 20), expected);
      EXPECT_LE(found, kBound) << path.filename() << " " << name_of(dtype);
    }
}

// Opened as bf16 or f16, f32 weights are rounded where they need not stay f32. What rounding costs is what it costs
// transformers: the distance of its logits with all weights rounded from those with none. Other weights are rounded
// here, fewer of them, so the error is another sample of the same size: twice is far, and a wrong tensor much further.
TEST(HuggingFace, NarrowedWeightsCostWhatTheirRoundingCosts) {
  for (const Path& path : checkpoints())
    for (const DType dtype : {DType::bf16, DType::f16}) {
      const auto model = Model::open(path, {.dtype = dtype});
      const TensorMap golden = golden_of(path);
      const Tensor rounded = golden.at(text("logits.", name_of(dtype)));
      const Tensor expected = golden.at("logits").rows(0, rounded.size(0));
      const double cost = distance(rounded, expected);
      const double found = distance(logits_in_chunks(*model, golden.at("ids").rows(0, rounded.size(0)), 20), expected);
      EXPECT_LE(found, 2 * cost) << path.filename() << " " << name_of(dtype);
      EXPECT_GT(found, cost / 20) << path.filename() << ": is it " << name_of(dtype) << " at all?";
    }
}

TEST(HuggingFace, ConvertedThereAndBackIsTheSame) {
  for (const Path& path : checkpoints()) {
    const ScratchDirectory scratch;
    const ModelFile original = ModelFile::open(path);
    const Path ours = scratch.path() / "ours", theirs = scratch.path() / "theirs", again = scratch.path() / "again";
    for (const Path& directory : {ours, theirs, again}) std::filesystem::create_directory(directory);
    write_model(ours, original, {.naming = Naming::state_spaces});
    write_model(theirs, ModelFile::open(ours), {.naming = Naming::huggingface, .shard_bytes = 20000});
    write_model(again, ModelFile::open(theirs), {.naming = Naming::state_spaces});
    const WriteModel unchanged{.naming = Naming::huggingface},
        narrow{.dtype = DType::bf16, .naming = Naming::huggingface};
    EXPECT_EQ(config_of(original, unchanged), original.config_json);
    EXPECT_NE(config_of(original, narrow).find("\"bos_token_id\": 0"), std::string::npos);
    EXPECT_EQ(ModelConfig::from_json(config_of(original, narrow), "narrow").json(), original.config.json());
    EXPECT_FALSE(std::filesystem::exists(theirs / "model.safetensors"));
    EXPECT_EQ(read_text(again / "config.json"), read_text(ours / "config.json"));
    EXPECT_EQ(read_text(again / "model.safetensors"), read_text(ours / "model.safetensors"));
    const ModelFile returned = ModelFile::open(theirs);
    EXPECT_EQ(returned.config.json(), original.config.json());
    EXPECT_EQ(returned.published, original.published);
    ASSERT_EQ(returned.tensors.size(), original.tensors.size());
    for (const auto& [name, tensor] : original.tensors) expect_near(returned.tensors.at(name), tensor, 0, name);
  }
}

}  // namespace
}  // namespace ssm::test
