// `ssm task` as a user gives it: the JSON, the directory, errors.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/app.h"
#include "core/files.h"
#include "formats/test_files.h"

namespace ssm::cli {
namespace {

std::string task(std::vector<std::string> words) {
  Commands commands;
  commands.push_back(make_task());
  words.insert(words.begin(), "task");
  words.insert(words.end(), {"--quiet", "--device", "cpu"});
  testing::internal::CaptureStdout();
  try {
    EXPECT_EQ(run_app(commands, words), 0);
  } catch (...) {
    testing::internal::GetCapturedStdout();
    throw;
  }
  return testing::internal::GetCapturedStdout();
}

const std::vector<std::string> kSmall = {
    "induction-heads", "--length", "8",  "--steps",          "4", "--eval-every", "2",
    "--test-lengths",  "8",        "16", "--eval-sequences", "4"};

std::vector<std::string> operator+(std::vector<std::string> left, const std::vector<std::string>& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

TEST(TaskCommand, PrintsOneObjectAndLeavesADirectory) {
  const ScratchDirectory scratch;
  const std::string out = (scratch.path() / "run").string();
  const std::string printed = task(kSmall + std::vector<std::string>{"--json", "--out", out});
  const auto json = nlohmann::json::parse(printed);
  EXPECT_EQ(std::count(printed.begin(), printed.end(), '\n'), 1);
  EXPECT_EQ(json["task"], "induction-heads");
  EXPECT_EQ(json["ended"], "steps");
  ASSERT_EQ(json["evaluations"].size(), 2U);
  ASSERT_EQ(json["tests"].size(), 2U);
  EXPECT_EQ(json["tests"][1]["length"], 16);
  EXPECT_EQ(json["tests"][1]["sequences"], 4);
  EXPECT_EQ(json["settings"]["length"], 8);
  EXPECT_EQ(nlohmann::json::parse(read_text(out + "/result.json")), json);
  EXPECT_TRUE(std::filesystem::exists(out + "/step-4/model.safetensors"));
  EXPECT_THROW(task(kSmall + std::vector<std::string>{"--out", out}), Error);
}

TEST(TaskCommand, PrintsATable) {
  const std::string printed = task(kSmall);
  EXPECT_NE(printed.find("induction-heads, mamba: 4 steps"), std::string::npos) << printed;
  EXPECT_EQ(std::count(printed.begin(), printed.end(), '\n'), 4);
}

TEST(TaskCommand, RefusesWhatMakesNoSense) {
  EXPECT_THROW(task({}), UsageError);
  EXPECT_THROW(task({"sorting"}), UsageError);
  EXPECT_THROW(task({"mqar", "--memory", "0", "--length", "3"}), UsageError);
  EXPECT_THROW(task(kSmall + std::vector<std::string>{"--ssm-cfg", R"({"selective": "A"})"}), Error);
}

}  // namespace
}  // namespace ssm::cli
