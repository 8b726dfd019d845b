// Lets a model write: `generate MODEL [PROMPT]`. Without a model, a small one with random weights writes noise.
#include <cstdio>
#include <string>

#include "ssm.h"

int main(int argc, char** argv) {
  try {
    const ssm::Engine engine =
        argc > 1 ? ssm::Engine::open(argv[1])
                 : ssm::Engine::create(R"({"d_model": 64, "n_layer": 2, "vocab_size": 256})", /*seed=*/1);
    std::fprintf(stderr, "%lld parameters\n", static_cast<long long>(engine.parameters()));

    ssm::Session session = engine.session();
    session.read(argc > 2 ? argv[2] : "ROMEO:");
    session.write({.max_tokens = 100, .temperature = 0.8, .seed = 1}, [](const ssm::Token& token) {
      std::fwrite(token.bytes.data(), 1, token.bytes.size(), stdout);
      return true;  // false ends the writing
    });
    std::puts("");
    return 0;
  } catch (const ssm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
