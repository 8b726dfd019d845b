// The past of a sequence is a state of constant size: read a prompt once, fork it, save it, carry it elsewhere.
#include <cstdio>
#include <filesystem>

#include "ssm.h"

int main() {
  const ssm::Engine engine = ssm::Engine::create(R"({"d_model": 64, "n_layer": 2, "vocab_size": 256})", /*seed=*/1);
  const ssm::WriteOptions options{.max_tokens = 20, .temperature = 0.1, .seed = 7};

  ssm::Session session = engine.session();
  session.read("A long prompt that two continuations share.");
  ssm::Session branch = session.fork();
  branch.read(" Only the branch has read this.");

  // Saved, and loaded by a session that never saw the prompt.
  const auto file = std::filesystem::temp_directory_path() / "ssm-fork-state.safetensors";
  session.save(file);
  ssm::Session carried = engine.session();
  carried.load(file);
  std::printf("state of %lld tokens: %lld bytes\n", static_cast<long long>(carried.tokens()),
              static_cast<long long>(std::filesystem::file_size(file)));
  std::filesystem::remove(file);

  const auto original = session.write(options), copy = carried.write(options), other = branch.write(options);
  std::printf("carried state goes on alike: %s\n", original == copy ? "yes" : "no");
  std::printf("branch goes its own way: %s\n", original != other ? "yes" : "no");
  return original == copy && original != other ? 0 : 1;
}
