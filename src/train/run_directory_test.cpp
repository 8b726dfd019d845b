// Checkpoints, log and leftovers on disk, with plain files as checkpoints.
#include "train/run_directory.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <set>

#include "formats/test_files.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

std::function<void(const Path&)> holding(const std::string& contents) {
  return [contents](const Path& directory) { write_file(directory / "what", contents); };
}

std::string line(int64_t step) { return text("{\"step\":", step, ",\"loss\":1.5}"); }

// Steps [first, last], each logged and saved.
void make_steps(RunDirectory& run, int64_t first, int64_t last, int64_t keep = 0) {
  for (int64_t step = first; step <= last; ++step) {
    run.log(line(step));
    run.save(step, keep, holding(text("state ", step)));
  }
}

std::set<std::string> names(const Path& directory) {
  std::set<std::string> all;
  for (const auto& entry : fs::directory_iterator(directory)) all.insert(entry.path().filename().string());
  return all;
}

void put(const Path& path, const std::string& contents) { std::ofstream(path, std::ios::binary) << contents; }

using Names = std::set<std::string>;

TEST(RunDirectoryFiles, KeepsTheNewest) {
  const ScratchDirectory scratch;
  const Path out = scratch.path() / "deep" / "run";
  RunDirectory run = RunDirectory::start(out);
  EXPECT_EQ(run.saved_step(), -1);
  make_steps(run, 0, 12, 2);
  EXPECT_EQ(names(out), (Names{"latest", "log.jsonl", "step-11", "step-12"}));
  EXPECT_EQ(read_text(out / "latest"), "step-12\n");
  EXPECT_EQ(read_text(run.checkpoint() / "what"), "state 12");
  run.save(12, 2, [](const Path&) { FAIL() << "the newest checkpoint is not made again"; });
}

TEST(RunDirectoryFiles, KeepZeroKeepsAll) {
  const ScratchDirectory scratch;
  RunDirectory run = RunDirectory::start(scratch.path());
  make_steps(run, 0, 3);
  EXPECT_EQ(names(scratch.path()), (Names{"latest", "log.jsonl", "step-0", "step-1", "step-2", "step-3"}));
}

TEST(RunDirectoryFiles, ResumeCutsWhatIsNewerThanLatest) {
  const ScratchDirectory scratch;
  const Path& out = scratch.path();
  {
    RunDirectory run = RunDirectory::start(out);
    make_steps(run, 0, 5, 2);
    run.log(line(6));
    run.log(line(7));
  }
  // As a killed process leaves them: a checkpoint that `latest` does not name yet, and unfinished things.
  fs::create_directory(out / "step-6");
  fs::create_directory(out / "step-7.tmp-1234");
  fs::create_directory(out / "step-3.tmp-1234.old");
  put(out / "latest.tmp-1234", "step");
  put(out / "notes.txt", "the user's own");
  std::ofstream(out / "log.jsonl", std::ios::app) << "{\"step\":8,\"lo";

  RunDirectory run = RunDirectory::resume(out);
  EXPECT_EQ(run.saved_step(), 5);
  EXPECT_EQ(names(out), (Names{"latest", "log.jsonl", "notes.txt", "step-4", "step-5"}));
  std::string expected;
  for (int64_t step = 0; step <= 5; ++step) expected += line(step) + "\n";
  EXPECT_EQ(read_text(out / "log.jsonl"), expected);
  make_steps(run, 6, 6, 2);
  EXPECT_EQ(read_text(out / "log.jsonl"), expected + line(6) + "\n");
  EXPECT_EQ(names(out), (Names{"latest", "log.jsonl", "notes.txt", "step-5", "step-6"}));
}

TEST(RunDirectoryFiles, AFailedSaveLeavesTheNewestCheckpoint) {
  const ScratchDirectory scratch;
  RunDirectory run = RunDirectory::start(scratch.path());
  make_steps(run, 0, 1, 1);
  EXPECT_TRUE(fails_with("the disk is full", [&] {
    run.save(2, 1, [](const Path& directory) {
      write_file(directory / "what", "half");
      throw Error("the disk is full");
    });
  }));
  EXPECT_EQ(names(scratch.path()), (Names{"latest", "log.jsonl", "step-1"}));
  EXPECT_EQ(read_text(newest_checkpoint(scratch.path()) / "what"), "state 1");
}

TEST(RunDirectoryFiles, StartRefusesWhatIsInUse) {
  const ScratchDirectory scratch;
  const Path out = scratch.path() / "run";
  {
    RunDirectory run = RunDirectory::start(out);
    EXPECT_TRUE(fails_with("another process is training", [&] { RunDirectory::start(out); }));
    make_steps(run, 0, 1);
  }
  EXPECT_TRUE(fails_with("already holds a run; go on with --resume", [&] { RunDirectory::start(out); }));
  fs::remove(out / "latest");
  EXPECT_TRUE(fails_with("write step-1 into it", [&] { RunDirectory::start(out); }));
  EXPECT_TRUE(fs::exists(out / "step-1" / "what"));
  put(scratch.path() / "file", "x");
  EXPECT_TRUE(fails_with("is not a directory", [&] { check_new_run(scratch.path() / "file" / "run"); }));
  EXPECT_TRUE(fails_with("--out is empty", [] { check_new_run(""); }));
}

TEST(RunDirectoryFiles, AStartKilledBeforeLatestWasWrittenCanBeRepeated) {
  const ScratchDirectory scratch;
  fs::create_directory(scratch.path() / "step-0");
  put(scratch.path() / "log.jsonl", line(1));
  RunDirectory run = RunDirectory::start(scratch.path());
  EXPECT_EQ(names(scratch.path()), (Names{"log.jsonl"}));
  EXPECT_EQ(read_text(scratch.path() / "log.jsonl"), "");
}

TEST(RunDirectoryFiles, ResumeRefusesWhatIsNoRun) {
  const ScratchDirectory scratch;
  const Path& out = scratch.path();
  const auto resume = [&] { RunDirectory::resume(out); };
  EXPECT_TRUE(fails_with("no such directory", [&] { RunDirectory::resume(out / "absent"); }));
  EXPECT_TRUE(fails_with("is no run", resume));
  EXPECT_TRUE(names(out).empty()) << "a refused --resume left something behind";
  for (const char* latest : {"", "step-", "step--1", "step-1x", "../step-1", "step-99999999999999999999"}) {
    put(out / "latest", latest);
    EXPECT_TRUE(fails_with("does not name a checkpoint", resume)) << latest;
  }
  put(out / "latest", "step-4\n");
  EXPECT_TRUE(fails_with("names step-4, which is not there", resume));
}

TEST(RunDirectoryFiles, ADamagedLogIsAnError) {
  const ScratchDirectory scratch;
  {
    RunDirectory run = RunDirectory::start(scratch.path());
    make_steps(run, 0, 2);
  }
  put(scratch.path() / "log.jsonl", "{\"step\":1}\nnonsense\n{\"step\":2}\n");
  EXPECT_TRUE(fails_with("log.jsonl is not JSON", [&] { RunDirectory::resume(scratch.path()); }));
}

}  // namespace
}  // namespace ssm
