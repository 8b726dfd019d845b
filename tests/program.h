// The program run as a child process, for the tests of its commands: a small model, files to work on, and what an error
// must look like. SSM_PROGRAM is where the build put it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "core/files.h"
#include "formats/npy.h"
#include "formats/safetensors.h"
#include "formats/test_files.h"
#include "models/model.h"

extern char** environ;

namespace ssm {

using Words = std::vector<std::string>;
using Json = nlohmann::json;
namespace fs = std::filesystem;

struct Outcome {
  int code = -1;  // 128 + signal when it was killed
  std::string out, err;
  Json json() const { return Json::parse(out); }
};

// A child process whose output goes to files.
class Process {
 public:
  Process(const Path& directory, Words words) : out_(directory / ".stdout"), err_(directory / ".stderr") {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), flags, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), flags, 0600);
    const int problem = posix_spawnp(&id_, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    require(problem == 0, "cannot start ", words[0]);
  }

  std::string out() const { return read_text(out_); }
  void signal(int number) const { kill(id_, number); }

  // Ends it after two minutes: far more than any case needs, also under a sanitizer.
  Outcome wait() {
    int status = 0;
    for (int i = 0; waitpid(id_, &status, WNOHANG) == 0; ++i) {
      if (i == 60000) kill(id_, SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(out_), read_text(err_)};
  }

 private:
  Path out_, err_;
  pid_t id_ = 0;
};

class Program : public testing::Test {
 protected:
  static std::unique_ptr<Model> make_model(std::string_view config) {
    return Model::create(ModelConfig::from_json(config, "test"), 1, {});
  }

  Program() {
    make_model(R"({"d_model": 16, "n_layer": 2, "vocab_size": 256})")->save(directory("model"));
    write_npy(path("ids.npy"), Tensor::of(kIds));
    write_npy(path("batch.npy"), Tensor::of(kIds).reshape({2, 6}));
    scratch_.file("text.txt", "The quick brown fox\njumps over the lazy dog.\n");
  }

  Path path(std::string_view name) const { return scratch_.path() / name; }
  std::string arg(std::string_view name) const { return path(name).string(); }
  Path file(std::string_view name, std::string_view contents) const { return scratch_.file(name, contents); }
  Path directory(std::string_view name) const {
    fs::create_directories(path(name));
    return path(name);
  }

  Outcome run(const Words& words) const {
    Words all = {SSM_PROGRAM};
    all.insert(all.end(), words.begin(), words.end());
    return Process(scratch_.path(), all).wait();
  }
  Outcome shell(const std::string& command) const { return Process(scratch_.path(), {"sh", "-c", command}).wait(); }

  Outcome expect_done(const Words& words) const {
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, 0) << testing::PrintToString(words) << outcome.err;
    return outcome;
  }

  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(scratch_.path())) names.insert(entry.path().string());
    return names;
  }

  static testing::AssertionResult is_one_error(const Outcome& outcome, int code, std::string_view part) {
    const std::string& err = outcome.err;
    if (outcome.code != code) return testing::AssertionFailure() << "exit " << outcome.code << ": " << err;
    if (!err.starts_with("error: ") || std::count(err.begin(), err.end(), '\n') != 1 || err.back() != '\n')
      return testing::AssertionFailure() << "not one error line: " << err;
    for (const char c : err)
      if (static_cast<unsigned char>(c) < 0x20 && c != '\n') return testing::AssertionFailure() << "unescaped: " << err;
    if (err.find(part) == std::string::npos) return testing::AssertionFailure() << "no \"" << part << "\" in: " << err;
    if (!outcome.out.empty()) return testing::AssertionFailure() << "output before the error: " << outcome.out;
    return testing::AssertionSuccess();
  }

  void expect_error(const Words& words, std::string_view part, int code = 1) const {
    run({"--version"});  // makes the files of Process
    const std::set<std::string> before = files();
    EXPECT_TRUE(is_one_error(run(words), code, part)) << testing::PrintToString(words);
    EXPECT_EQ(files(), before) << testing::PrintToString(words);
  }
  void expect_usage(const Words& words, std::string_view part) const { expect_error(words, part, 2); }

  // A copy of the model whose tensors are changed.
  std::string changed_model(const std::string& name, const std::function<void(TensorMap&)>& change) const {
    TensorMap tensors = read_safetensors(path("model") / "model.safetensors");
    change(tensors);
    const Path to = directory(name);
    write_file(to / "config.json", read_text(path("model") / "config.json"));
    write_safetensors(to / "model.safetensors", NamedTensors(tensors.begin(), tensors.end()));
    return to.string();
  }
  std::string model_with_config(const std::string& name, std::string_view config) const {
    const Path to = directory(name);
    write_file(to / "config.json", config);
    write_file(to / "model.safetensors", read_text(path("model") / "model.safetensors"));
    return to.string();
  }

  const std::vector<int64_t> kIds = {72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100};
  const ScratchDirectory scratch_;
};

}  // namespace ssm
