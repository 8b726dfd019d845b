// A talk that goes on where it ended: `chat MODEL STATE`. Each line is read once and answered; the state is all that is
// kept of the talk, and STATE holds it from one start of the program to the next. Without arguments, two short talks
// with a small random model show that the second goes on from the first.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <sstream>
#include <string>

#include "ssm.h"

namespace {

void talk(const ssm::Engine& engine, const std::filesystem::path& state, std::istream& in) {
  ssm::Session session = engine.session();
  if (std::filesystem::exists(state)) session.load(state);
  std::printf("(%lld tokens so far)\n", static_cast<long long>(session.tokens()));
  for (std::string line; std::getline(in, line);) {
    session.read(line + "\n");
    session.write({.max_tokens = 60, .temperature = 0.8, .seed = 1}, [](const ssm::Token& token) {
      std::cout << token.bytes << std::flush;
      return token.bytes.find('\n') == std::string::npos;  // an answer is a line
    });
    std::cout << std::endl;
  }
  if (session.tokens() > 0) session.save(state);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 2) {
      talk(ssm::Engine::open(argv[1]), argv[2], std::cin);
      return 0;
    }
    const ssm::Engine engine = ssm::Engine::create(R"({"d_model": 64, "n_layer": 2, "vocab_size": 256})", /*seed=*/1);
    const auto state = std::filesystem::temp_directory_path() / "ssm-chat.state";
    std::filesystem::remove(state);
    for (const char* said : {"Who is there?", "And who else?"}) {
      std::istringstream line(said);
      talk(engine, state, line);
    }
    std::filesystem::remove(state);
    return 0;
  } catch (const ssm::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
