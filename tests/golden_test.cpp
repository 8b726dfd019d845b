// The small models of tests/golden (tools/make_golden.py made them with another implementation): logits, states, loss,
// gradients and greedy continuations, on ref in f64 and on cpu in f32, the two sequences of each packed into one call.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/files.h"
#include "engine/generator.h"
#include "formats/safetensors.h"
#include "models/model.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

struct Precision {
  ModelOptions options;
  // Largest difference over the largest value of the tensor. ref differs by the order of sums in f64, and by the
  // rounding of the stored gradients to f32. cpu: f32 rounding over sums of some hundred terms and up to 45 steps.
  double values, gradients;
};

const std::vector<Precision>& precisions() {
  static const std::vector<Precision> gpu = {{{.device = Device::cuda(), .dtype = DType::f32}, 1e-5, 5e-5}};
  if (test_devices().front().first.is_cuda()) return gpu;
  static const std::vector<Precision> all = {{{.device = Device::ref(), .dtype = DType::f64}, 1e-12, 1e-7},
                                             {{.device = Device::cpu(), .dtype = DType::f32}, 1e-5, 5e-5}};
  return all;
}

std::vector<Path> golden_models() {
  std::vector<Path> models;
  for (const auto& entry : std::filesystem::directory_iterator(Path(SSM_SOURCE_ROOT) / "tests" / "golden"))
    if (entry.is_directory()) models.push_back(entry.path());
  std::sort(models.begin(), models.end());
  return models;
}

// Element i of `found` is to be element place(i) of `expected`.
template <class Place>
void expect_near(const Tensor& found, const Tensor& expected, double relative, const std::string& what, Place place) {
  const Tensor a = found.on(Device::cpu()).to(DType::f64), b = expected.to(DType::f64);
  double largest = 0;
  for (const double value : b.span<double>()) largest = std::max(largest, std::abs(value));
  double worst = 0;
  for (int64_t i = 0; i < a.count(); ++i)
    worst = std::max(worst, std::abs(a.data<double>()[i] - b.data<double>()[place(i)]));
  EXPECT_LE(worst, relative * largest) << what << ", largest value " << largest;
}

void expect_near(const Tensor& found, const Tensor& expected, double relative, const std::string& what) {
  ASSERT_EQ(found.shape(), expected.shape()) << what;
  expect_near(found, expected, relative, what, [](int64_t i) { return i; });
}

// Both sequences of a golden file as one packed batch; the state of sequence i is slot 1 - i.
struct Golden {
  explicit Golden(const Path& model) : tensors(read_safetensors(model / "golden.safetensors")) {
    const std::vector<int64_t> lengths = {at("ids.0").count(), at("ids.1").count()}, slots = {1, 0};
    seqs = Seqs::ragged(lengths, slots);
    ids = Tensor::empty({seqs.tokens()}, DType::i64);
    targets = Tensor::empty({seqs.tokens()}, DType::i64);
    for (int64_t s = 0, row = 0; s < 2; ++s) {
      const Tensor own = at("ids." + std::to_string(s));
      for (int64_t t = 0; t < own.count(); ++t, ++row) {
        ids.data<int64_t>()[row] = own.data<int64_t>()[t];
        targets.data<int64_t>()[row] = t + 1 < own.count() ? own.data<int64_t>()[t + 1] : -100;
      }
    }
  }
  Tensor at(const std::string& name) const { return tensors.at(name); }

  TensorMap tensors;
  Seqs seqs;
  Tensor ids, targets;  // (t)
};

TEST(Golden, ModelsAreThere) { EXPECT_GE(golden_models().size(), 3u); }

TEST(Golden, EveryDeviceLogitsAndStates) {
  if (skipped_for_want_of_gpu()) return;
  for (const Path& path : golden_models())
    for (const Precision& precision : precisions()) {
      const auto model = Model::open(path, precision.options);
      const Golden golden(path);
      StatePool pool(model->lm().state_spec(), 2, precision.options.device);
      const Ctx ctx{.device = precision.options.device, .threads = &test_threads()};
      const Var hidden = model->lm().hidden(ctx, golden.ids, golden.seqs, pool.state());
      const Tensor logits = model->lm().logits(ctx, hidden).value;  // (t, padded vocab)
      for (int64_t s = 0; s < 2; ++s) {
        const std::string which = std::to_string(s), where = path.filename().string() + " " + which;
        expect_near(
            logits.rows(golden.seqs.offsets[static_cast<size_t>(s)], golden.seqs.offsets[static_cast<size_t>(s) + 1]),
            golden.at("logits." + which), precision.values, where + ": logits");
        // Theirs: conv (layers, e, w), the newest input last; ssm (layers, e, n), of Mamba-2 (layers, m, p, n). Ours:
        // conv (w - 1, e); ssm (n, e), of Mamba-2 (m, n, p).
        const StateSpec& spec = model->lm().state_spec();
        for (size_t i = 0; i < spec.size(); ++i) {
          const bool conv = spec[i].name.ends_with(".conv");
          const Tensor theirs = golden.at((conv ? "conv." : "ssm.") + which);
          const auto layer = static_cast<int64_t>(i / 2);
          const int64_t heads = theirs.rank() == 4 ? theirs.size(1) : 1, e = theirs.size(-2), inner = theirs.size(-1);
          const int64_t skipped = conv ? 1 : 0, kept = inner - skipped;
          ASSERT_EQ(spec[i].shape, theirs.rank() == 4 ? (Shape{heads, kept, e}) : (Shape{kept, e})) << spec[i].name;
          expect_near(pool.state()[i].value.rows(1 - s, 2 - s), theirs, precision.values, where + ": " + spec[i].name,
                      [&](int64_t at) {
                        const int64_t head = at / (kept * e), within = at % (kept * e);
                        return ((layer * heads + head) * e + within % e) * inner + within / e + skipped;
                      });
        }
      }
    }
}

TEST(Golden, EveryDeviceLossAndGradients) {
  if (skipped_for_want_of_gpu()) return;
  for (const Path& path : golden_models())
    for (Precision precision : precisions()) {
      precision.options.trainable = true;
      const auto model = Model::open(path, precision.options);
      const Golden golden(path);
      Tape tape;
      const Ctx ctx{.device = precision.options.device, .threads = &test_threads(), .tape = &tape};
      const Var loss = model->lm().loss(ctx, golden.ids, golden.targets, golden.seqs);
      const std::string where = path.filename().string();
      expect_near(loss.value, golden.at("loss"), precision.values, where + ": loss");
      tape.backward(loss);
      for (const auto& param : model->params().all())
        expect_near(param->var.grad->value, golden.at("gradient." + param->name), precision.gradients,
                    where + ": gradient of " + param->name);
    }
}

TEST(Golden, EveryDeviceGreedyContinuations) {
  if (skipped_for_want_of_gpu()) return;
  for (const Path& path : golden_models())
    for (const Precision& precision : precisions()) {
      const auto model = Model::open(path, precision.options);
      const Golden golden(path);
      for (const std::string which : {"0", "1"}) {
        StatePool pool(model->lm().state_spec(), 1, precision.options.device);
        Generator generator(*model, test_threads(), pool, pool.acquire());
        generator.read(golden.at("ids." + which).span<int64_t>());
        const Tensor right = golden.at("greedy." + which);
        std::vector<int64_t> ids;
        generator.write({.sampler = {.temperature = 0}, .max_tokens = right.count()}, [&](const WrittenToken& token) {
          ids.push_back(token.id);
          return true;
        });
        EXPECT_TRUE(std::equal(ids.begin(), ids.end(), right.data<int64_t>())) << path.filename() << " " << which;
      }
    }
}

}  // namespace
}  // namespace ssm::test
