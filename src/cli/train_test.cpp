// `ssm train` as a user gives it, in this process: flags to runs on disk, and errors that leave nothing behind.
#include <gtest/gtest.h>

#include "cli/app.h"
#include "data/token_file.h"
#include "formats/npy.h"
#include "formats/test_files.h"

namespace ssm::cli {
namespace {

namespace fs = std::filesystem;

using Words = std::vector<std::string>;

class TrainCommand : public testing::Test {
 protected:
  TrainCommand() {
    std::string lines;
    for (int i = 0; i < 60; ++i) lines += text("line ", i, " of a text, \xff and what follows it\n");
    text_ = scratch_.file("text.txt", lines).string();
    config_ = scratch_.file("config.json", R"({"d_model": 8, "n_layer": 1, "vocab_size": 256})").string();
  }

  // The output of a run that ends well.
  std::string train(Words words) {
    Commands commands;
    commands.push_back(make_train());
    words.insert(words.begin(), "train");
    words.push_back("--quiet");
    testing::internal::CaptureStdout();
    try {
      EXPECT_EQ(run_app(commands, words), 0);
    } catch (...) {
      testing::internal::GetCapturedStdout();
      throw;
    }
    return testing::internal::GetCapturedStdout();
  }
  // A small run of `steps`, with more flags.
  Words small(const std::string& out, const std::string& steps, const Words& more = {}) {
    Words words = {"--config", config_,    "--out", path(out), "--steps",      steps, "--batch",
                   "2",        "--length", "16",    "--json",  "--eval-every", "2"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  std::string path(const std::string& name) const { return (scratch_.path() / name).string(); }
  std::string bytes(const std::string& name) const { return read_text(scratch_.path() / name); }

  ScratchDirectory scratch_;
  std::string text_, config_;
};

TEST_F(TrainCommand, PrintsItsLogAndLeavesAModel) {
  const std::string printed = train(small("run", "5", {"--data", text_}));
  EXPECT_EQ(printed, bytes("run/log.jsonl"));
  EXPECT_EQ(std::count(printed.begin(), printed.end(), '\n'), 5);
  EXPECT_TRUE(printed.starts_with("{\"step\":1,\"loss\":5.5")) << printed;  // log 256 = 5.545
  EXPECT_NE(printed.find("\"eval_loss\":"), std::string::npos);
  EXPECT_EQ(bytes("run/latest"), "step-5\n");
  for (const char* file : {"config.json", "model.safetensors", "optimizer.safetensors", "trainer.json"})
    EXPECT_TRUE(fs::exists(path("run/step-5/") + file)) << file;
  const std::string summary = train({"--init", path("run"), "--data", text_, "--out", path("next"), "--steps", "1",
                                     "--length", "16", "--report-memory"});
  EXPECT_NE(summary.find("held-back loss"), std::string::npos);
  EXPECT_NE(summary.find("selective_scan"), std::string::npos) << summary;
}

TEST_F(TrainCommand, ResumesWithTheRunsOwnSettings) {
  train(small("whole", "6", {"--data", text_, "--seed", "4"}));
  train(small("parts", "3", {"--data", text_, "--seed", "4"}));
  fs::rename(text_, path("moved.txt"));
  EXPECT_TRUE(fails_with("text.txt", [&] { train({"--resume", path("parts"), "--steps", "6"}); }));
  train({"--resume", path("parts"), "--steps", "6", "--data", path("moved.txt"), "--json"});
  for (const char* file : {"step-6/model.safetensors", "step-6/optimizer.safetensors"})
    EXPECT_TRUE(bytes(std::string("whole/") + file) == bytes(std::string("parts/") + file)) << file;

  const auto refused = [&](std::string_view why, Words more) {
    more.insert(more.begin(), {"--resume", path("parts"), "--data", path("moved.txt")});
    return fails_with(why, [&] { train(more); });
  };
  EXPECT_TRUE(refused("--batch is 3, the run in", {"--batch", "3"}));
  EXPECT_TRUE(refused("--seed is 5, the run in", {"--seed", "5"}));
  EXPECT_TRUE(refused("--steps 2: the run in", {"--steps", "2"}));
  EXPECT_TRUE(refused("--out with --resume", {"--out", path("elsewhere")}));
  scratch_.file("moved.txt", "another text, and a much shorter one, with which this run did not begin");
  EXPECT_TRUE(refused("--data has 71 tokens, the run in", {"--steps", "9"}));
  EXPECT_TRUE(fails_with("already holds a run", [&] { train(small("parts", "9", {"--data", path("moved.txt")})); }));
}

TEST_F(TrainCommand, TakesPrescribedBatchesInOrder) {
  std::vector<int64_t> ids(3 * 2 * 9);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i * i % 256);
  write_npy(path("batches.npy"), Tensor::of(std::span<const int64_t>(ids), {3, 2, 9}));
  const Words start = {"--config", config_, "--batches", path("batches.npy"), "--json", "--out"};
  const auto with = [&](Words more) {
    more.insert(more.begin(), start.begin(), start.end());
    return more;
  };
  const std::string printed = train(with({path("all")}));
  EXPECT_EQ(std::count(printed.begin(), printed.end(), '\n'), 3);
  EXPECT_NE(printed.find("\"tokens\":16,"), std::string::npos);
  EXPECT_TRUE(fails_with("has batches for 3 steps", [&] { train(with({path("more"), "--steps", "4"})); }));
  EXPECT_TRUE(fails_with("has 2; leave the flag out", [&] { train(with({path("more"), "--batch", "4"})); }));
  EXPECT_FALSE(fs::exists(path("more")));
}

TEST_F(TrainCommand, JoinsTokenFiles) {
  const Path first = path("first.tok"), second = path("second.tok");
  const std::string all = read_text(text_);
  const auto write = [&](const Path& file, std::string_view part) {
    TokenWriter writer(file, 256, "bytes");
    const std::vector<int64_t> ids(reinterpret_cast<const unsigned char*>(part.data()),
                                   reinterpret_cast<const unsigned char*>(part.data()) + part.size());
    writer.append(ids);
    writer.commit();
  };
  write(first, std::string_view(all).substr(0, 1001));
  write(second, std::string_view(all).substr(1001));
  train(small("text", "2", {"--data", text_}));
  train(small("tokens", "2", {"--data", first.string(), second.string()}));
  EXPECT_TRUE(bytes("text/step-2/model.safetensors") == bytes("tokens/step-2/model.safetensors"));
  EXPECT_TRUE(fails_with("text and token files together", [&] {
    train(small("mixed", "2", {"--data", text_, second.string()}));
  }));
}

TEST_F(TrainCommand, RefusesBeforeItMakesAnything) {
  scratch_.file("empty.txt", "");
  scratch_.file("short.txt", "a few words");
  scratch_.file("gpt.json", R"({"d_model": 8, "n_layer": 1, "vocab_size": 300})");
  const auto refused = [&](std::string_view why, const Words& words) { return fails_with(why, [&] { train(words); }); };
  EXPECT_TRUE(refused("needs --out", {"--preset", "bytes-1m", "--data", text_}));
  EXPECT_TRUE(refused("needs a model", {"--out", path("run"), "--data", text_}));
  EXPECT_TRUE(refused("more than one model", small("run", "1", {"--data", text_, "--preset", "bytes-1m"})));
  EXPECT_TRUE(refused("needs data", small("run", "1")));
  EXPECT_TRUE(refused("did you mean bytes-1m", {"--preset", "bytes-1n", "--data", text_, "--out", path("run")}));
  EXPECT_TRUE(refused("cannot open", small("run", "1", {"--data", path("absent.txt")})));
  EXPECT_TRUE(refused("is empty", small("run", "1", {"--data", path("empty.txt")})));
  EXPECT_TRUE(
      refused("10 tokens found for training, at least 16 + 1", small("run", "1", {"--data", path("short.txt")})));
  EXPECT_TRUE(refused("--steps 0", small("run", "0", {"--data", text_})));
  EXPECT_TRUE(refused("--schedule cosin", small("run", "1", {"--data", text_, "--schedule", "cosin"})));
  EXPECT_TRUE(refused("is not a directory", small("text.txt", "1", {"--data", text_})));
  EXPECT_TRUE(refused("nothing says how to turn it into this model's ids",
                      {"--config", path("gpt.json"), "--data", text_, "--out", path("run")}));
  EXPECT_TRUE(refused("training on this device is in f32", small("run", "1", {"--data", text_, "--dtype", "bf16"})));
  EXPECT_TRUE(refused("is no run", {"--resume", scratch_.path().string()}));
  EXPECT_FALSE(fs::exists(path("run")));
}

}  // namespace
}  // namespace ssm::cli
