// `ssm task --all` and `ssm task --resume` as processes: runs side by side, Ctrl-C and going on, runs that fail.
#include "tests/program.h"

namespace ssm {
namespace {

const Words kSmall = {"--recipe",
                      "quick",
                      "--steps",
                      "40",
                      "--eval-every",
                      "20",
                      "--curriculum",
                      "0",
                      "--test-lengths",
                      "8",
                      "16",
                      "--batch",
                      "2",
                      "--length",
                      "8",
                      "--eval-length",
                      "8",
                      "--eval-sequences",
                      "4",
                      "--shortest",
                      "4",
                      "--d-model",
                      "16",
                      "--device",
                      "cpu",
                      "--quiet"};

Words operator+(Words left, const Words& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

TEST_F(Program, AllTasksMakesRunsSideBySideAndTables) {
  const Words all = Words{"task", "--all", "--out", arg("all"), "--only", "induction-mamba", "--jobs", "2"} + kSmall;
  const Outcome first = expect_done(all);
  EXPECT_NE(first.out.find("| Mamba | 3 | "), std::string::npos) << first.out;
  EXPECT_TRUE(first.err.empty()) << first.err;
  EXPECT_EQ(read_text(path("all/tables.md")), first.out);
  const auto written = fs::last_write_time(path("all/induction-mamba-1/result.json"));
  const Outcome again = expect_done(all + Words{"--json"});
  EXPECT_EQ(again.json()["tables"].size(), 4U);
  EXPECT_EQ(fs::last_write_time(path("all/induction-mamba-1/result.json")), written);  // not made again
}

TEST_F(Program, AllTasksGoesOnAfterAnInterruption) {
  const Words all = Words{SSM_PROGRAM, "task", "--all", "--out", arg("all"), "--only", "induction-mamba-0"} + kSmall;
  const Path log = path("all/induction-mamba-0/log.jsonl");
  Words longer = all;
  *(std::find(longer.begin(), longer.end(), "--steps") + 1) = "100000";
  {
    Process process(path(""), longer);
    for (int i = 0; i < 6000 && (!fs::exists(log) || fs::file_size(log) == 0); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    process.signal(SIGINT);
    EXPECT_EQ(process.wait().code, 130);
  }
  const Path run = path("all/induction-mamba-0");
  EXPECT_TRUE(fs::exists(run / "latest"));
  EXPECT_FALSE(fs::exists(run / "result.json"));
  EXPECT_FALSE(fs::exists(run / "failure.txt"));
  EXPECT_NE(read_text(path("all/tables.md")).find("unfinished"), std::string::npos);
  // It goes on with the settings it began with: killed now, it still has what it had.
  const auto lines = [&] {
    const std::string all_lines = read_text(log);
    return std::count(all_lines.begin(), all_lines.end(), '\n');
  };
  const auto before = lines();
  {
    Process process(path(""), longer);
    for (int i = 0; i < 6000 && lines() <= before; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    process.signal(SIGKILL);
    EXPECT_EQ(process.wait().code, 128 + SIGKILL);
  }
  EXPECT_GT(lines(), before);
  EXPECT_TRUE(fs::exists(run / read_text(run / "latest").substr(0, read_text(run / "latest").find('\n'))));
}

TEST_F(Program, AllTasksSaysWhichRunFailedAndWhy) {
  const Words all = Words{"task", "--all", "--out", arg("all"), "--only", "mqar-mamba-32", "--memory", "7"} + kSmall;
  const Outcome outcome = expect_done(all);
  EXPECT_NE(outcome.out.find("| Mamba | failed |"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("mqar-mamba-32-0 failed: --length is 8, expected 28"), std::string::npos) << outcome.out;
}

TEST_F(Program, AllTasksIsListed) {
  const Outcome list = expect_done({"task", "--all", "--list", "--only", "mqar-s4d", "--out", "DIR"});
  EXPECT_EQ(std::count(list.out.begin(), list.out.end(), '\n'), 8);
  EXPECT_NE(list.out.find(" --seed 0 --out DIR/mqar-s4d-64-0\n"), std::string::npos) << list.out;
  expect_usage({"task", "--all"}, "needs --out");
  expect_usage({"task", "--all", "mqar", "--out", arg("x")}, "leave mqar out");
  expect_usage({"task", "--all", "--out", arg("x"), "--recipe", "slow"}, "expected one of quick, fast, paper");
  expect_usage({"task", "--all", "--out", arg("x"), "--only", "hyena"}, "no run is called so");
  expect_usage({"task", "--all", "--out", arg("x"), "--jobs", "0"}, "--jobs is 0");
  expect_usage({"task", "mqar", "--jobs", "2"}, "--jobs is for --all");
}

TEST_F(Program, TaskGoesOnWithItsOwnSettings) {
  const Words small = {"task",
                       "induction-heads",
                       "--length",
                       "8",
                       "--steps",
                       "4",
                       "--eval-every",
                       "2",
                       "--test-lengths",
                       "8",
                       "--eval-sequences",
                       "4",
                       "--device",
                       "cpu",
                       "--quiet",
                       "--out",
                       arg("run")};
  expect_done(small);
  expect_error(small, "holds the result of a run");
  expect_error({"task", "--resume", arg("run")}, "holds the result of a run that is over");
  fs::remove(path("run/result.json"));
  const Outcome tested = expect_done({"task", "--resume", arg("run"), "--device", "cpu", "--quiet", "--json"});
  EXPECT_EQ(tested.json()["steps"], 4);
  EXPECT_EQ(tested.json()["settings"]["length"], 8);
  fs::remove(path("run/result.json"));
  expect_usage({"task", "--resume", arg("run"), "--steps", "9"}, "--steps with --resume");
  expect_usage({"task", "--resume", arg("run"), "--seed", "9"}, "--seed with --resume");
  expect_error({"task", "--resume", arg("nothing")}, "no such directory");
  write_file(path("run/step-4/result.json"), "{}");
  expect_error({"task", "--resume", arg("run")}, "is no result of ssm task");
}

}  // namespace
}  // namespace ssm
