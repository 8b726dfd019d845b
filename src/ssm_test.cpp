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

// Logits that the authors' own program prints for their recording (data/keyword-spotter).
TEST(DoorNetwork, APublishedKeywordSpotterAnswersAsItsAuthorsSay) {
  constexpr double kExpected[] = {2.785138,  5.158771,  -1.276157,  8.506478,   -17.429506,
                                  -6.067291, -8.790417, -15.064961, -14.502712, 25.272921};
  for (const EngineOptions& options : {EngineOptions{}, EngineOptions{.device = "ref", .dtype = "f64"}}) {
    const Network net =
        Network::open(std::string(SSM_SOURCE_ROOT) + "/data/keyword-spotter/mambakws-any-10.safetensors", options);
    const Tensor x = net.linear("linear_in", net.tensor("sample_input"));  // (100, 64)
    for (const int64_t piece : {1, 7, 100}) {
      MixerStream mamba = net.mixer("mamba", "Mamba1", 64);
      const Tensor mean = Tensor::zeros({1, 64}, DType::f32);
      for (int64_t t = 0; t < 100; t += piece) {
        const Tensor y = mamba.forward(x.rows(t, std::min<int64_t>(100, t + piece)));
        for (int64_t i = 0; i < y.count(); ++i) mean.data<float>()[i % 64] += y.data<float>()[i] / 100;
      }
      const Tensor logits = net.linear("classifier", mean);
      for (int64_t i = 0; i < 10; ++i)
        EXPECT_NEAR(logits.data<float>()[i], kExpected[i], 1e-4) << options.device << ", pieces of " << piece;
    }
  }
}

TEST(DoorNetwork, AStreamForksAndStartsAnew) {
  const Network net = Network::open(std::string(SSM_SOURCE_ROOT) + "/data/keyword-spotter/mambakws-any-10.safetensors");
  const Tensor x = net.linear("linear_in", net.tensor("sample_input"));
  MixerStream one = net.mixer("mamba", "Mamba1", 64);
  const Tensor first = one.forward(x.rows(0, 20));
  MixerStream two = one.fork();
  const auto equal = [](const Tensor& a, const Tensor& b) {
    return std::equal(a.data<float>(), a.data<float>() + a.count(), b.data<float>());
  };
  two.forward(x.rows(50, 60));  // what the fork hears, the first does not
  MixerStream three = one.fork();
  EXPECT_TRUE(equal(one.forward(x.rows(20, 30)), three.forward(x.rows(20, 30))));
  one.reset();
  EXPECT_TRUE(equal(one.forward(x.rows(0, 20)), first));
  EXPECT_GT(one.state_bytes(), 0);
}

TEST(DoorNetwork, WhatIsNotThereIsAnError) {
  const std::string path = std::string(SSM_SOURCE_ROOT) + "/data/keyword-spotter/mambakws-any-10.safetensors";
  const Network net = Network::open(path);
  EXPECT_THROW(net.tensor("nothing"), Error);
  EXPECT_THROW(net.linear("nothing", net.tensor("sample_input")), Error);
  EXPECT_THROW(net.linear("classifier", net.tensor("sample_input")), Error);  // (100, 40) where (t, 64) is expected
  EXPECT_THROW(net.mixer("nothing", "Mamba1", 64), Error);
  EXPECT_THROW(net.mixer("mamba", "Mamba1", 63), Error);
  EXPECT_THROW(net.mixer("mamba", "Mamba1", 64, R"({"d_stat": 16})"), Error);
  EXPECT_THROW(net.mixer("mamba", "Mamba9", 64), Error);
  EXPECT_THROW(net.mixer("mamba", "Mamba1", 64).forward(Tensor::zeros({3, 65}, DType::f32)), Error);
  EXPECT_THROW(Network::open(path + ".not"), Error);
}

}  // namespace
}  // namespace ssm
