// The library's door: what goes in through it comes out the same.
#include "ssm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "formats/test_files.h"

namespace ssm {
namespace {

constexpr const char* kConfig = R"({"d_model": 32, "n_layer": 2, "vocab_size": 256})";

std::vector<int64_t> bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

TEST(Door, ASavedModelIsTheModel) {
  const ScratchDirectory scratch;
  const Engine engine = Engine::create(kConfig, 1);
  engine.save(scratch.path() / "model");
  const Engine opened = Engine::open(scratch.path() / "model");
  EXPECT_EQ(opened.config(), engine.config());
  EXPECT_EQ(opened.parameters(), engine.parameters());
  const Tensor a = engine.logits(bytes_of("Hello")), b = opened.logits(bytes_of("Hello"));
  ASSERT_EQ(a.shape(), (Shape{5, 256}));
  EXPECT_TRUE(std::equal(a.data<float>(), a.data<float>() + a.count(), b.data<float>()));
}

TEST(Door, ASessionWritesWhatTheLogitsSay) {
  const Engine engine = Engine::create(kConfig, 1, {.device = "ref", .dtype = "f64"});
  Session session = engine.session();
  session.read("Hello");
  std::string written;
  const auto ids = session.write({.max_tokens = 6, .temperature = 0}, [&](const Token& token) {
    written += token.bytes;
    return true;
  });
  EXPECT_EQ(session.tokens(), 11);
  std::vector<int64_t> text = bytes_of("Hello");
  for (const int64_t id : ids) {
    const Tensor logits = engine.logits(text);
    const double* last = logits.matrix<double>()[logits.size(0) - 1];
    EXPECT_EQ(id, std::max_element(last, last + 256) - last);
    text.push_back(id);
  }
  EXPECT_EQ(std::string(ids.begin(), ids.end()), written);
}

TEST(Door, ForkedAndLoadedSessionsGoOnAlikeAndApart) {
  const ScratchDirectory scratch;
  const Engine engine = Engine::create(kConfig, 1);
  const WriteOptions options{.max_tokens = 12, .seed = 3};
  Session session = engine.session();
  session.read("Hello");
  session.write({.max_tokens = 4, .seed = 3});
  session.save(scratch.path() / "state");
  Session fork = session.fork(), loaded = engine.session();
  fork.read("another way");
  loaded.load(scratch.path() / "state");
  EXPECT_EQ(loaded.tokens(), 9);
  fork.write(options);
  EXPECT_EQ(session.write(options), loaded.write(options));
}

TEST(Door, ASessionOutlivesItsEngine) {
  const auto open = [] { return Engine::create(kConfig, 1).session(); };
  Session session = open();
  session.read("Hello");
  EXPECT_EQ(session.write({.max_tokens = 3}).size(), 3u);
}

TEST(Door, TrainingLowersTheLoss) {
  Engine engine = Engine::create(kConfig, 1, {.trainable = true});
  const Tensor ids = Tensor::of(bytes_of("abcabcabcabd")).reshape({2, 6});
  const double first = engine.train_step(ids, {.lr = 1e-2});
  EXPECT_NEAR(first, std::log(256), 0.5);
  double last = first;
  for (int i = 0; i < 20; ++i) last = engine.train_step(ids, {.lr = 1e-2});
  EXPECT_LT(last, first / 2);
}

TEST(Door, MistakesAreErrors) {
  Engine engine = Engine::create(R"({"d_model": 16, "n_layer": 1, "vocab_size": 50})", 1);
  EXPECT_TRUE(fails_with("trainable", [&] { engine.train_step(Tensor::zeros({1, 4}, DType::i64)); }));
  EXPECT_TRUE(fails_with("no tokenizer", [&] { engine.session().read("text"); }));
  EXPECT_TRUE(fails_with("at least one", [&] { engine.logits({}); }));
  EXPECT_TRUE(fails_with("temperature is -1", [&] {
    Session session = engine.session();
    session.read(std::vector<int64_t>{1});
    session.write({.temperature = -1});
  }));
  EXPECT_TRUE(fails_with("expected f32", [] { Engine::create(kConfig, 1, {.dtype = "f8"}); }));
  EXPECT_TRUE(fails_with("no such model", [] { Engine::open("/no/such/model"); }));
  Engine trainable = Engine::create(kConfig, 1, {.trainable = true});
  EXPECT_TRUE(fails_with("(s, t + 1)", [&] { trainable.train_step(Tensor::zeros({4}, DType::i64)); }));
}

}  // namespace
}  // namespace ssm
