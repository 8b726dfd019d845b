// The laws every registered mixer must satisfy on every device (src/README.md lists them). A mixer added to the
// registry is tested here without another line.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "mixers/mixer.h"
#include "tests/op_check.h"

namespace ssm::test {
namespace {

constexpr int64_t kWidth = 12;  // not a multiple of any vector length
constexpr int64_t kLayers = 3;

// A registered mixer in settings that fit kWidth. Keys a mixer does not have are skipped.
struct MixerCase {
  const MixerKind& kind;
  std::string settings;  // JSON

  std::unique_ptr<MixerConfig> config() const {
    auto config = kind.config();
    read_settings(*config, settings, kind.name, UnknownKeys::are_skipped);
    return config;
  }
};

// The defaults as far as they go with so small a width, and with differences of 1e-3 in a parameter (S4's modes turn by
// dt times a thousand a token), and everything the other way round.
const std::vector<std::string> kSettings = {
    R"({"headdim": 3, "num_heads": 3, "dt_max": 0.01})",
    R"({"headdim": 3, "num_heads": 4, "num_heads_kv": 2, "head_dim": 6, "rotary_emb_dim": 4, "alibi": true, "mlp_dim": 5,
        "qkv_proj_bias": false, "softmax_scale": 0.7, "ngroups": 2, "d_ssm": 18, "d_state": 6, "d_conv": 3, "bias": true, "conv_bias": false,
        "D_has_hdim": true, "norm_before_gate": true, "n_ssm": 3, "disc": "bilinear", "is_real": true,
        "dt_transform": "softplus"})",
    R"({"headdim": 3, "num_heads": 3, "dt_max": 0.01, "selective": "none"})",
    R"({"headdim": 3, "num_heads": 3, "dt_max": 0.01, "selective": "B"})",
    R"({"headdim": 3, "num_heads": 3, "dt_max": 0.01, "selective": "dtC"})"};

// Further settings of one mixer each: every inner layer in every block, and odd numbers of states where they may be.
const std::vector<std::pair<std::string, std::string>> kSettingsOfOne = {
    {"Mamba1", R"({"inner": "S4", "dt_max": 0.01})"},
    {"Mamba1", R"({"inner": "S4D", "dt_max": 0.01, "init": "diag-inv", "d_state": 16})"},
    {"Mamba1", R"({"inner": "S4D", "d_state": 7, "is_real": true, "init": "diag-real", "d_conv": 2})"},
    {"H3", R"({"inner": "S4", "dt_max": 0.01})"},
    {"H3", R"({"inner": "S4D", "d_state": 7, "is_real": true, "d_conv": 2})"},
    {"H3", R"({"inner": "S6", "d_state": 5, "d_conv": 2})"},
    {"S4D", R"({"d_state": 7, "is_real": true, "init": "diag-real"})"},
    {"S6", R"({"d_state": 5, "dt_rank": 3})"}};

// One mixer with its parameters, moved off their initial values so that no term is zero or one by accident.
struct Fixture {
  std::unique_ptr<ParamStore> store;
  std::unique_ptr<Mixer> mixer;
  Device device;
  DType dtype;

  Fixture(const MixerCase& mixer_case, Device on, DType precision, bool trainable = false,
          const TensorMap* source = nullptr)
      : store(std::make_unique<ParamStore>(ParamStore::Options{
            .dtype = precision, .seed = 7, .source = source, .trainable = trainable, .device = on})),
        mixer(mixer_case.config()->build(Params(*store), kWidth, kLayers)),
        device(on),
        dtype(precision) {
    if (source) return;
    for (const auto& param : store->all()) {
      const Tensor& value = param->var.value;
      const Tensor nudge = random_tensor("nudge " + param->name, value.shape(), DType::f32, -0.2, 0.2).to(dtype);
      value.add(nudge.on(device));
    }
  }

  Ctx ctx(Tape* tape = nullptr) const { return {device, &test_threads(), tape}; }
  StatePool pool(int64_t slots) const { return StatePool(mixer->state(), slots, device); }
  Tensor input(int64_t t, const std::string& name = "u") const {
    return random_tensor(name, {t, kWidth}, DType::f32).to(dtype).on(device);
  }
  Tensor run(const Tensor& u, const Seqs& seqs, State state = {}) const {
    return mixer->forward(ctx(), {u, {}}, seqs, state).value;
  }
  // The same numbers computed in another order agree to this; on ref the order is the same, so the bits are.
  double tolerance() const { return device.is_ref() ? 0 : test::tolerance(DType::f32, 512); }
};

Tensor join(const std::vector<Tensor>& parts) {
  int64_t rows = 0;
  for (const Tensor& part : parts) rows += part.size(0);
  const Tensor all = Tensor::empty({rows, parts[0].size(1)}, parts[0].dtype(), parts[0].device());
  rows = 0;
  for (const Tensor& part : parts) {
    all.rows(rows, rows + part.size(0)).copy_from(part);
    rows += part.size(0);
  }
  return all;
}

void expect_same_states(const StatePool& a, StatePool::Slot slot_a, const StatePool& b, StatePool::Slot slot_b,
                        DType dtype, double tolerance, const std::string& what) {
  const auto as_tensor = [dtype](std::vector<std::byte> bytes) {
    const Tensor tensor = Tensor::empty({static_cast<int64_t>(bytes.size()) / bytes_of(dtype)}, dtype);
    std::memcpy(tensor.raw(), bytes.data(), bytes.size());
    return tensor;
  };
  expect_near(as_tensor(a.save(slot_a)), as_tensor(b.save(slot_b)), tolerance, what);
}

void for_each_mixer(const std::function<void(const MixerCase&)>& body) {
  const bool on_gpu = test_devices().front().first.is_cuda();
  for (const MixerKind& kind : mixer_kinds()) {
    if (on_gpu && kind.runs_on == RunsOn::host) continue;
    for (const std::string& settings : kSettings) {
      SCOPED_TRACE(text(kind.name, " ", settings));
      body({kind, settings});
    }
    for (const auto& [name, settings] : kSettingsOfOne) {
      if (name != kind.name) continue;
      SCOPED_TRACE(text(kind.name, " ", settings));
      body({kind, settings});
    }
  }
}

void for_each_mixer_and_device(const std::function<void(const Fixture&)>& body) {
  if (skipped_for_want_of_gpu()) return;
  for_each_mixer([&](const MixerCase& mixer_case) {
    for (const auto& [device, dtype] : test_devices()) {
      SCOPED_TRACE(text(name_of(device), " ", name_of(dtype)));
      body(Fixture(mixer_case, device, dtype));
    }
  });
}

TEST(Laws, SplitAnywhereEqualsWhole) {
  for_each_mixer_and_device([](const Fixture& f) {
    const int64_t t = 70;
    const Tensor u = f.input(t);
    StatePool whole_pool = f.pool(1);
    const Tensor whole = f.run(u, Seqs::dense(1, t), whole_pool.state());
    expect_near(f.run(u, Seqs::dense(1, t)), whole, 0, "without state");
    for (const int64_t piece : {1, 2, 7, 64, 69}) {
      StatePool pool = f.pool(1);
      std::vector<Tensor> parts;
      for (int64_t begin = 0; begin < t; begin += piece) {
        const int64_t end = std::min(t, begin + piece);
        parts.push_back(f.run(u.rows(begin, end), Seqs::dense(1, end - begin), pool.state()));
      }
      expect_near(join(parts), whole, f.tolerance(), text("in pieces of ", piece));
      expect_same_states(pool, 0, whole_pool, 0, f.dtype, f.tolerance(), text("state after pieces of ", piece));
    }
  });
}

TEST(Laws, NeighboursAndSlotsChangeNothing) {
  for_each_mixer_and_device([](const Fixture& f) {
    const std::vector<int64_t> lengths = {5, 0, 1, 17, 3}, slots = {3, 0, 5, 1, 4};
    const Seqs seqs = Seqs::ragged(lengths, slots);
    const Tensor u = f.input(seqs.tokens());
    StatePool pool = f.pool(6);
    // Two calls, so that the second starts from states that differ.
    const Tensor first = f.run(u, seqs, pool.state()), second = f.run(u, seqs, pool.state());
    for (int64_t s = 0; s < seqs.count(); ++s) {
      const auto at = static_cast<size_t>(s);
      const Tensor mine = u.rows(seqs.offsets[at], seqs.offsets[at + 1]);
      const Seqs alone = Seqs::dense(1, lengths[at]);
      StatePool own = f.pool(1);
      const std::string what = text("sequence ", s);
      expect_near(first.rows(seqs.offsets[at], seqs.offsets[at + 1]), f.run(mine, alone, own.state()), f.tolerance(),
                  what);
      expect_near(second.rows(seqs.offsets[at], seqs.offsets[at + 1]), f.run(mine, alone, own.state()), f.tolerance(),
                  what + ", second call");
      expect_same_states(pool, slots[at], own, 0, f.dtype, f.tolerance(), what + ", state");
    }
    const StatePool untouched = f.pool(1);
    expect_same_states(pool, 2, untouched, 0, f.dtype, 0, "the slot nobody used");
  });
}

TEST(Laws, ForkThenDivergeLeavesTheParentUnchanged) {
  for_each_mixer_and_device([](const Fixture& f) {
    StatePool pool = f.pool(2);
    const Seqs parent = Seqs::dense(1, 9), child = Seqs::ragged(std::vector<int64_t>{4}, std::vector<int64_t>{1});
    f.run(f.input(9), parent, pool.state());
    const std::vector<std::byte> before = pool.save(0);
    pool.copy(0, 1);
    const Tensor from_fork = f.run(f.input(4, "v"), child, pool.state());
    EXPECT_EQ(pool.save(0), before);
    EXPECT_NE(pool.save(1), before);
    // Saved and restored elsewhere, the state goes on the same way.
    StatePool other = f.pool(1);
    other.restore(0, before);
    expect_near(f.run(f.input(4, "v"), Seqs::dense(1, 4), other.state()), from_fork, 0, "restored state");
  });
}

TEST(Laws, FastDevicesEqualRef) {
  if (skipped_for_want_of_gpu()) return;
  const Device device = test_devices().back().first;
  for_each_mixer([device](const MixerCase& mixer_case) {
    const Fixture exact(mixer_case, Device::ref(), DType::f64), fast(mixer_case, device, DType::f32);
    const Seqs seqs = Seqs::ragged(std::vector<int64_t>{66, 1, 30});
    StatePool exact_pool = exact.pool(3), fast_pool = fast.pool(3);
    const Tensor expected = exact.run(exact.input(97), seqs, exact_pool.state());
    for_each_simd_target([&](const std::string& target) {
      SCOPED_TRACE(target);
      StatePool pool = fast.pool(3);
      expect_near(fast.run(fast.input(97), seqs, pool.state()), expected, test::tolerance(DType::f32, 512), "output");
    });
  });
}

TEST(Laws, SaveAndLoadIsIdentity) {
  for_each_mixer([](const MixerCase& mixer_case) {
    const Fixture first(mixer_case, Device::cpu(), DType::f32);
    TensorMap saved;
    for (const auto& param : first.store->all()) saved[param->name] = param->var.value;
    const Fixture second(mixer_case, Device::cpu(), DType::f32, true, &saved);
    second.store->expect_all_used("the saved mixer");
    const Seqs seqs = Seqs::dense(1, 20);
    expect_near(second.run(second.input(20), seqs), first.run(first.input(20), seqs), 0, "output of the loaded mixer");
  });
}

// Loss of two calls that carry the state between them, for the gradient laws: sum of outputs times fixed weights.
double two_calls(const Fixture& f, const Tensor& u, Tape* tape, std::vector<Var>* start) {
  const int64_t t = u.size(0), cut = t / 3;
  const Ctx ctx = f.ctx(tape);
  std::vector<Var> state = *start;
  std::vector<std::pair<Var, Tensor>> seeds;
  double loss = 0;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, t}}) {
    // Two sequences a call, in slots 2 and 0 of 3.
    const Seqs seqs = Seqs::ragged(std::vector<int64_t>{(end - begin) / 2, end - begin - (end - begin) / 2},
                                   std::vector<int64_t>{2, 0});
    const Var y = f.mixer->forward(ctx, {u.rows(begin, end), {}}, seqs, state);
    const Tensor weight = random_tensor(text("weight ", begin), y.value.shape(), DType::f64);
    for (int64_t i = 0; i < y.value.count(); ++i) loss += y.value.data<double>()[i] * weight.data<double>()[i];
    seeds.emplace_back(y, weight);
  }
  if (tape) tape->backward(seeds);
  return loss;
}

TEST(Laws, GradientIsFiniteDifferenceAlsoThroughCarriedState) {
  for_each_mixer([](const MixerCase& mixer_case) {
    const Fixture f(mixer_case, Device::ref(), DType::f64, true);
    const Tensor u = f.input(13);
    Tape tape;
    std::vector<Var> start;
    for (const StateEntry& entry : f.mixer->state()) {
      if (entry.dtype == DType::i64) {  // tokens that came before, by slot; one slot's rows are full
        start.push_back({Tensor::of(std::vector<int64_t>{2, 5, 4}).reshape({3, 1}), {}});
        continue;
      }
      std::vector<int64_t> sizes = {3};
      if (entry.per_token) sizes.push_back(5);
      sizes.insert(sizes.end(), entry.shape.begin(), entry.shape.end());
      start.push_back(tape.variable(random_tensor(entry.name, Shape(sizes), DType::f64, -0.5, 0.5)));
    }
    two_calls(f, u, &tape, &start);

    const auto check = [&](const std::string& name, const Tensor& value, const GradPtr& grad) {
      ASSERT_TRUE(grad && grad->written) << name << " got no gradient";
      const Tensor gradient = grad->value.clone();
      double largest = 0;
      for (const double g : gradient.span<double>()) largest = std::max(largest, std::abs(g));
      for (int64_t k = 0; k < std::min<int64_t>(6, value.count()); ++k) {
        const int64_t i = k * value.count() / std::min<int64_t>(6, value.count());
        double* element = value.data<double>() + i;
        const double center = *element, step = 1e-3;
        const auto loss_at = [&](double offset) {
          *element = center + offset;
          std::vector<Var> fresh;  // without a tape the call would advance the start in place
          for (const Var& var : start) fresh.push_back({var.value.clone(), {}});
          const double loss = two_calls(f, u, nullptr, &fresh);
          *element = center;
          return loss;
        };
        const double numeric =
            (8 * (loss_at(step) - loss_at(-step)) - (loss_at(2 * step) - loss_at(-2 * step))) / (12 * step);
        EXPECT_LE(std::abs(gradient.data<double>()[i] - numeric), 1e-7 * std::max(std::abs(numeric), largest))
            << name << " at " << i << ": " << gradient.data<double>()[i] << ", differences say " << numeric;
      }
    };
    for (const auto& param : f.store->all()) check(param->name, param->var.value, param->var.grad);
    for (size_t i = 0; i < start.size(); ++i)
      if (start[i].grad) check("state " + f.mixer->state()[i].name, start[i].value, start[i].grad);
  });
}

}  // namespace
}  // namespace ssm::test
