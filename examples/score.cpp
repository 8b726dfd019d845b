// How well does a model predict a file? `score MODEL FILE`. Files of any length need the same memory: what was read is
// carried in the state. Without arguments, a small random model scores its own source code.
#include <cstdio>

#include "ssm.h"

int main(int argc, char** argv) {
  try {
    const ssm::Engine engine =
        argc > 2 ? ssm::Engine::open(argv[1])
                 : ssm::Engine::create(R"({"d_model": 64, "n_layer": 2, "vocab_size": 256})", /*seed=*/1);
    const char* file = argc > 2 ? argv[2] : __FILE__;

    const ssm::Score score = engine.score(file);
    std::printf("%s: %lld tokens, %lld bytes\n", file, static_cast<long long>(score.tokens),
                static_cast<long long>(score.bytes));
    std::printf("nats a token  %.4f\n", score.nats / static_cast<double>(score.tokens));
    std::printf("perplexity    %.3f\n", score.perplexity());
    std::printf("bits a byte   %.4f\n", score.bits_per_byte());
    return 0;
  } catch (const ssm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
