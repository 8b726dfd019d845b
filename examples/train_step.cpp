// Trains a small model with random weights on one sentence until it can say it.
#include <cstdio>
#include <string>

#include "ssm.h"

int main() {
  ssm::Engine engine =
      ssm::Engine::create(R"({"d_model": 32, "n_layer": 2, "vocab_size": 256})", /*seed=*/1, {.trainable = true});
  const std::string text = "the state of a sequence has a constant size.";
  const ssm::Tensor ids = ssm::Tensor::empty({1, static_cast<int64_t>(text.size())}, ssm::DType::i64);  // (1, t + 1)
  for (size_t i = 0; i < text.size(); ++i) ids.data<int64_t>()[i] = static_cast<unsigned char>(text[i]);

  double loss = 0;
  for (int step = 1; step <= 150; ++step) {
    loss = engine.train_step(ids, {.lr = 1e-2});
    if (step == 1 || step % 50 == 0) std::printf("step %d: loss %.3f\n", step, loss);
  }
  ssm::Session session = engine.session();
  session.read("the ");
  std::string said = "the ";
  session.write({.max_tokens = static_cast<int64_t>(text.size()) - 4, .temperature = 0}, [&](const ssm::Token& token) {
    said += token.bytes;
    return true;
  });
  std::printf("it says: %s\n", said.c_str());
  return loss < 0.1 ? 0 : 1;
}
