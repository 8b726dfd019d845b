// The small models of tests/golden_baselines (tools/make_baseline_golden.py made them with PyTorch): a Transformer++,
// a hybrid and one with all options the other way round. Logits whole, in pieces and token by token, loss and
// gradients.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/generator.h"
#include "engine/state_file.h"
#include "formats/safetensors.h"
#include "formats/test_files.h"
#include "models/model.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

const std::vector<std::string> kModels = {"transformerpp", "mamba2attn", "odd", "lstm", "conv"};

Path path_of(const std::string& name) { return Path(SSM_SOURCE_ROOT) / "tests" / "golden_baselines" / name; }

struct Precision {
  ModelOptions options;
  double logits, gradients;  // largest difference over the largest value
};

const std::vector<Precision>& precisions() {
  static const std::vector<Precision> all = {{{.device = Device::ref(), .dtype = DType::f64}, 1e-12, 1e-7},
                                             {{.device = Device::cpu(), .dtype = DType::f32}, 1e-5, 5e-5}};
  return all;
}

double distance(const Tensor& found, const Tensor& expected) {
  const Tensor a = found.to(DType::f64), b = expected.to(DType::f64);
  EXPECT_EQ(a.shape(), b.shape());
  double worst = 0, largest = 0;
  for (int64_t i = 0; i < b.count(); ++i) {
    worst = std::max(worst, std::abs(a.data<double>()[i] - b.data<double>()[i]));
    largest = std::max(largest, std::abs(b.data<double>()[i]));
  }
  return worst / largest;
}

Tensor logits_in_pieces(const Model& model, const Tensor& ids, int64_t piece) {
  const Ctx ctx{.device = model.options().device, .threads = &test_threads()};
  StatePool pool(model.lm().state_spec(), 1);
  const Tensor all = Tensor::empty({ids.count(), model.config().padded_vocab()}, accumulator_of(model.options().dtype));
  for (int64_t begin = 0; begin < ids.count(); begin += piece) {
    const int64_t end = std::min(ids.count(), begin + piece);
    const Var hidden = model.lm().hidden(ctx, ids.rows(begin, end), Seqs::dense(1, end - begin), pool.state());
    all.rows(begin, end).copy_from(model.lm().logits(ctx, hidden).value);
  }
  return all;
}

TEST(BaselineGolden, LogitsWholeInPiecesAndTokenByToken) {
  for (const std::string& name : kModels)
    for (const Precision& precision : precisions()) {
      const auto model = Model::open(path_of(name), precision.options);
      const TensorMap golden = read_safetensors(path_of(name) / "golden.safetensors");
      for (const std::string which : {"0", "1"}) {
        const Tensor ids = golden.at("ids." + which).clone(), expected = golden.at("logits." + which).clone();
        for (const int64_t piece : {ids.count(), int64_t{7}, int64_t{1}}) {
          const double found = distance(logits_in_pieces(*model, ids, piece), expected);
          EXPECT_LE(found, precision.logits) << name << " " << which << " in pieces of " << piece;
          RecordProperty(name + "_" + which + "_" + std::to_string(piece), text(found));
        }
      }
    }
}

TEST(BaselineGolden, LossAndGradients) {
  for (const std::string& name : kModels)
    for (Precision precision : precisions()) {
      precision.options.trainable = true;
      const auto model = Model::open(path_of(name), precision.options);
      const TensorMap golden = read_safetensors(path_of(name) / "golden.safetensors");
      std::vector<int64_t> ids, targets, lengths;
      for (const std::string which : {"0", "1"}) {
        const Tensor own = golden.at("ids." + which).clone();
        lengths.push_back(own.count());
        for (int64_t t = 0; t < own.count(); ++t) {
          ids.push_back(own.data<int64_t>()[t]);
          targets.push_back(t + 1 < own.count() ? own.data<int64_t>()[t + 1] : -100);
        }
      }
      for (const Recompute again : {Recompute::nothing, Recompute::blocks}) {
        Tape tape;
        const Ctx ctx{
            .device = precision.options.device, .threads = &test_threads(), .tape = &tape, .recompute = again};
        model->params().forget_gradients();
        const Var loss = model->lm().loss(ctx, Tensor::of(ids), Tensor::of(targets), Seqs::ragged(lengths));
        EXPECT_LE(distance(loss.value.reshape({1}), golden.at("loss").clone()), precision.logits) << name;
        tape.backward(loss);
        for (const auto& param : model->params().all()) {
          const Tensor all = param->var.grad->value.to(DType::f64);
          const int64_t step = std::max<int64_t>(1, all.count() / 200);
          std::vector<double> some;
          for (int64_t i = 0; i < all.count(); i += step) some.push_back(all.data<double>()[i]);
          EXPECT_LE(distance(Tensor::of(some), golden.at("gradient." + param->name).clone()), precision.gradients)
              << name << " " << param->name;
        }
      }
    }
}

// A sequence saved to a file and read again goes on as if it had never stopped, with as many rows as it had tokens.
TEST(BaselineGolden, StateFilesHoldTheTokensThatWereRead) {
  const ScratchDirectory scratch;
  for (const std::string& name : kModels) {
    const auto model = Model::open(path_of(name), {.device = Device::cpu()});
    const Tensor ids = read_safetensors(path_of(name) / "golden.safetensors").at("ids.1").clone();
    const auto write = [&](Generator& generator) {
      std::vector<int64_t> written;
      generator.write({.sampler = {.temperature = 0}, .max_tokens = 40}, [&](const WrittenToken& token) {
        written.push_back(token.id);
        return true;
      });
      return written;
    };
    StatePool pool(model->lm().state_spec(), 3);
    Generator first(*model, test_threads(), pool, pool.acquire()), fork(*model, test_threads(), pool, pool.acquire());
    first.read(ids.span<int64_t>());
    fork.fork_from(first);
    const Snapshot snapshot = first.snapshot();
    ASSERT_EQ(static_cast<int64_t>(snapshot.state.size()), bytes_of(model->lm().state_spec(), ids.count()));
    write_state_file(scratch.path() / "state", *model, snapshot);
    const std::vector<int64_t> expected = write(first);
    EXPECT_EQ(write(fork), expected);
    StatePool fresh(model->lm().state_spec(), 1);
    Generator restored(*model, test_threads(), fresh, fresh.acquire());
    restored.restore(read_state_file(scratch.path() / "state", *model));
    EXPECT_EQ(write(restored), expected);
  }
}

// Saved in the house's spelling and opened again: the same config and logits; nothing of the house's own is written.
TEST(BaselineGolden, SavedModelsOpenAgain) {
  const ScratchDirectory scratch;
  for (const std::string& name : kModels) {
    const ModelFile file = ModelFile::open(path_of(name));
    EXPECT_EQ(file.config.json().find("alibi"), std::string::npos);
    EXPECT_EQ(file.config.json().find("learned_positions"), std::string::npos);
    EXPECT_THROW(config_of(file, {.naming = Naming::huggingface}), Error);
    const auto model = Model::open(file, {.device = Device::cpu()});
    std::filesystem::create_directories(scratch.path() / name);
    model->save(scratch.path() / name);
    const auto again = Model::open(scratch.path() / name, {.device = Device::cpu()});
    EXPECT_EQ(again->config().json(), model->config().json());
    const Tensor ids = read_safetensors(path_of(name) / "golden.safetensors").at("ids.1").clone();
    expect_near(logits_in_pieces(*again, ids, 9), logits_in_pieces(*model, ids, 9), 0, name);
  }
}

// Positions learned in a table are carried like any state, have gradients, and end where the table ends.
TEST(LearnedPositions, AreCarriedTrainedAndLimited) {
  const ModelConfig config = ModelConfig::from_json(
      R"({"d_model": 12, "n_layer": 1, "vocab_size": 11, "learned_positions": 30, "attn_layer_idx": [0],
          "attn_cfg": {"causal": true, "num_heads": 2}})",
      "config.json");
  EXPECT_EQ(ModelConfig::from_json(config.json(), "again").json(), config.json());
  const auto model = Model::create(config, 3, {.device = Device::ref(), .dtype = DType::f64, .trainable = true});
  for (double& value : model->params().find("backbone.positions.weight")->var.value.span<double>()) value *= 20;
  std::vector<int64_t> same(30, 4);
  const Tensor ids = Tensor::of(same), whole = logits_in_pieces(*model, ids, 30);
  expect_near(logits_in_pieces(*model, ids, 7), whole, 0, "in pieces");
  EXPECT_GT(distance(whole.rows(3, 4), whole.rows(9, 10)), 1e-3);  // the ids alone would be the same everywhere
  EXPECT_THROW(logits_in_pieces(*model, Tensor::of(std::vector<int64_t>(31, 4)), 8), Error);

  const auto loss_of = [&](Tape* tape) {
    const Ctx ctx{.device = Device::ref(), .threads = &test_threads(), .tape = tape};
    return model->lm().loss(ctx, Tensor::of(std::vector<int64_t>{1, 2, 3, 4, 5}),
                            Tensor::of(std::vector<int64_t>{2, 3, 4, 5, 6}), Seqs::ragged(std::vector<int64_t>{3, 2}));
  };
  Tape tape;
  const Var loss = loss_of(&tape);
  tape.backward(loss);
  const Var& table = model->params().find("backbone.positions.weight")->var;
  for (const int64_t i : {0, 13, 25, 40}) {  // rows 0, 1, 2 and one that no token has
    double& element = table.value.data<double>()[i];
    const double center = element, step = 1e-4;
    const auto at = [&](double value) {
      element = value;
      const double result = loss_of(nullptr).value.item<double>();
      element = center;
      return result;
    };
    EXPECT_NEAR(table.grad->value.data<double>()[i], (at(center + step) - at(center - step)) / (2 * step), 1e-7) << i;
  }
}

}  // namespace
}  // namespace ssm::test
