// The list of runs, results through JSON, a run that goes on from its checkpoint, and the tables of what is there.
#include "task/task_runs.h"

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "formats/test_files.h"
#include "task/task_charts.h"
#include "task/task_result.h"
#include "task/task_tables.h"

namespace ssm {
namespace {

using Json = nlohmann::json;

TEST(TaskRuns, EveryRunOfEveryRecipeMakesSense) {
  const std::set<std::string> tasks = {"selective-copying", "induction-heads", "mqar"};
  for (const Recipe recipe : {Recipe::quick, Recipe::fast, Recipe::paper}) {
    std::set<std::string> names;
    for (const TaskRun& run : task_runs(recipe)) {
      EXPECT_TRUE(names.insert(run.name).second) << run.name;
      TaskConfig config = run.config();
      EXPECT_TRUE(tasks.contains(config.task)) << run.name;
      try {
        config.settle();
        config.model();
      } catch (const Error& error) {  // a mixer of the list that this version does not have
        EXPECT_TRUE(std::string_view(error.what()).starts_with("mixer is")) << run.name << ": " << error.what();
      }
    }
    EXPECT_EQ(names.size(), 45U);
  }
  EXPECT_EQ(task_runs(Recipe::quick, 2).size(), 82U);
  EXPECT_THROW(recipe_named("slow"), Error);
}

TEST(TaskRuns, ThePaperRecipeIsThePublishedSettings) {
  for (const TaskRun& run : task_runs(Recipe::paper)) {
    if (run.name != "copying-mamba-0" && run.name != "induction-mamba-0") continue;
    TaskConfig listed = run.config(), plain;
    plain.task = listed.task;
    listed.settle();
    plain.settle();
    EXPECT_EQ(write_json(listed.fields()), write_json(plain.fields()));
  }
}

TEST(TaskRuns, CommandLinesAreForAShell) {
  const auto runs = task_runs(Recipe::quick, 1, R"({"test_lengths": [8, 16], "minutes": 2})");
  for (const TaskRun& run : runs) {
    if (run.name != "induction-selects-dt-0") continue;
    const std::string command = run.command();
    EXPECT_TRUE(command.starts_with("ssm task induction-heads --steps ")) << command;
    EXPECT_NE(command.find(R"( --ssm-cfg '{"selective": "dt"}' )"), std::string::npos) << command;
    EXPECT_NE(command.find(" --test-lengths 8 16 "), std::string::npos) << command;
    EXPECT_TRUE(command.ends_with(" --minutes 2 --seed 0")) << command;
    EXPECT_EQ(run.config().minutes, 2);
  }
  EXPECT_TRUE(matches("copying-mamba-0", "copying-mamba"));
  EXPECT_TRUE(matches("copying-mamba-0", ""));
  EXPECT_TRUE(matches("mqar-s4d-64-0", "mqar-*-64"));
  EXPECT_FALSE(matches("copying-mamba-0", "copying-s4"));
}

TaskConfig tiny() {
  TaskConfig config;
  config.task = "induction-heads";
  config.d_model = 16, config.length = 8, config.batch = 2, config.rate.steps = 12, config.eval_every = 4;
  config.eval_sequences = 8, config.test_lengths = {8, 16};
  config.settle();
  return config;
}

// With numbers that a made-up result needs.
TaskRecord made_up(const TaskRun& run, double share) {
  TaskRecord record{run.config(), 0, "f32", {}};
  record.config.settle();
  record.result.steps = record.config.rate.steps;
  record.result.ended = "steps";
  for (const int64_t length : record.config.test_lengths)
    record.result.tests.push_back(
        {.length = length,
         .accuracy = {.answers = 1000, .right = std::llround(1000 * share), .sequences = 1000, .whole = 0}});
  return record;
}

TEST(TaskResult, IsReadAsItWasWritten) {
  const ScratchDirectory scratch;
  TaskRecord record{tiny(), 7, "f32", {}};
  record.result = {.evaluations = {{.step = 4, .loss = 0.1, .seconds = 2.5, .accuracy = {8, 3, 8, 3}}},
                   .tests = {{.length = 8, .accuracy = {8, 8, 8, 8}, .seconds = 1},
                             {.length = 16, .seconds = 2, .failure = "out of memory"}},
                   .steps = 12,
                   .parameters = 99,
                   .train_seconds = 3,
                   .seconds = 4,
                   .ended = "solved",
                   .perfect_in_a_row = 1};
  const std::string json = task_result_json(record);
  write_file(scratch.path() / "result.json", json);
  EXPECT_EQ(task_result_json(read_task_result(scratch.path() / "result.json")), json);
  for (const char* wrong : {"", "[]", "{}", R"({"settings": {"task": 3}})", R"({"settings": {"tsk": "mqar"}})"}) {
    write_file(scratch.path() / "result.json", wrong);
    EXPECT_THROW(read_task_result(scratch.path() / "result.json"), Error) << wrong;
  }
}

TEST(TaskRun, GoesOnToTheBitAfterAnInterruption) {
  const ScratchDirectory scratch;
  const TaskConfig config = tiny();
  Threads threads(1);
  const auto weights = [](const Path& directory) { return read_text(directory / "model.safetensors"); };
  const auto run = [&](const char* name, int64_t until) {
    const Path path = scratch.path() / name;
    const bool goes_on = std::filesystem::exists(path / "latest");
    RunDirectory directory = goes_on ? RunDirectory::resume(path) : RunDirectory::start(path);
    const ModelOptions options{.device = Device::cpu(), .trainable = true};
    const auto model =
        goes_on ? Model::open(directory.checkpoint(), options) : Model::create(config.model(), 3, options);
    int64_t step = directory.saved_step();
    TaskObserver observer;
    observer.step = [&](const StepResult& result) { step = result.step; };
    observer.go_on = [&] { return step < until; };
    return run_task(*model, config, 3, threads, observer, &directory);
  };
  const TaskResult whole = run("whole", 100);
  EXPECT_EQ(whole.ended, "steps");
  EXPECT_EQ(run("parts", 6).ended, "interrupted");
  EXPECT_EQ(run("parts", 8).ended, "interrupted");  // at a step that has an evaluation
  const TaskResult parts = run("parts", 100);
  EXPECT_EQ(parts.ended, "steps");
  EXPECT_EQ(weights(scratch.path() / "parts/step-12"), weights(scratch.path() / "whole/step-12"));
  ASSERT_EQ(parts.tests.size(), 2U);
  EXPECT_EQ(parts.tests[1].accuracy.right, whole.tests[1].accuracy.right);
  ASSERT_EQ(whole.evaluations.size(), 3U);
  // Step 8's evaluation was cut short, and its step was made: the checkpoint is behind it.
  ASSERT_EQ(parts.evaluations.size(), 2U);
  EXPECT_EQ(parts.evaluations[0].step, 4);
  EXPECT_EQ(parts.evaluations[1].step, 12);
  EXPECT_EQ(parts.evaluations[1].accuracy.right, whole.evaluations[2].accuracy.right);
}

// Interrupted in its test, a run whose minutes are over trains no further: the test alone is missing.
TEST(TaskRun, GoesOnBehindItsMinutesWithTheTest) {
  const ScratchDirectory scratch;
  TaskConfig config = tiny();
  config.minutes = 1e-9;
  Threads threads(1);
  const auto fresh = Model::create(config.model(), 3, {.device = Device::cpu(), .trainable = true});
  auto first = std::make_unique<RunDirectory>(RunDirectory::start(scratch.path() / "run"));
  bool evaluated = false, tested = false;
  TaskObserver observer;
  observer.evaluated = [&](const TaskEvaluation&) { evaluated = true; };
  observer.tested = [&](const TaskTest&) { tested = true; };
  observer.go_on = [&] { return !tested; };
  EXPECT_EQ(run_task(*fresh, config, 3, threads, observer, first.get()).ended, "interrupted");
  EXPECT_TRUE(evaluated);
  first.reset();
  RunDirectory second = RunDirectory::resume(scratch.path() / "run");
  const auto saved = Model::open(second.checkpoint(), {.device = Device::cpu(), .trainable = true});
  const TaskResult result = run_task(*saved, config, 3, threads, {}, &second);
  EXPECT_EQ(result.ended, "minutes");
  EXPECT_EQ(result.steps, 1);
  EXPECT_EQ(result.tests.size(), 2U);
}

TEST(TaskTables, AreMadeOfWhatIsThere) {
  const ScratchDirectory scratch;
  const auto runs = task_runs(Recipe::quick);
  for (const TaskRun& run : runs) {
    const Path to = scratch.path() / run.name;
    std::filesystem::create_directories(to);
    if (run.name == "copying-h3-s4-0") write_file(to / kFailure, "no <such> mixer\n");
    if (run.name == "induction-mamba2-0") write_file(to / "latest", "step-0\n");
    if (run.row != "copying-mamba" && run.row != "induction-mamba" && run.row != "mqar-mamba2-64") continue;
    TaskRecord record = made_up(run, run.seed == 1 ? 0.9996 : 1);
    if (run.row == "induction-mamba") {
      record.result.tests.back().failure = "out of memory";
      record.result.tests[3].accuracy.right = run.seed == 2 ? 250 : 1000;
    }
    if (run.row == "mqar-mamba2-64") record.result.tests.back().accuracy.right = 500, record.config.batch = 5;
    write_file(to / kResult, task_result_json(record));
  }
  const std::string tables = write_task_tables(scratch.path(), runs);
  const auto has = [&](std::string_view part) { return tables.find(part) != std::string::npos; };
  EXPECT_TRUE(has("| Mamba | S6 | 99.8 | 100.0 / 100.0 / 100.0 |")) << tables;
  EXPECT_TRUE(has("| H3 | S4 | 57.0 | failed |")) << tables;
  EXPECT_TRUE(has("| no gate | S4 | 18.3 | missing |")) << tables;
  EXPECT_TRUE(has("| Mamba | 3 | 100.0 | 100.0 | 100.0 | 25.0 | 100.0 |")) << tables;
  EXPECT_TRUE(has("| out of memory | 2^9 | 2^16 |")) << tables;
  EXPECT_TRUE(has("| Mamba-2 | unfinished |")) << tables;
  EXPECT_TRUE(has("| Mamba-2 | missing | 50.0 (8.0 of 16) | missing | missing |")) << tables;
  EXPECT_TRUE(has("| H3, published | 1 | 100.0 | 100.0 | 100.0 | 80.9 |")) << tables;
  EXPECT_TRUE(has("- copying-h3-s4-0 failed: no <such> mixer\n")) << tables;
  EXPECT_TRUE(has("- mqar-mamba2-64-0 was made with batch 5 for 32\n")) << tables;
  EXPECT_EQ(read_text(scratch.path() / "tables.md"), tables);
  const Json json = Json::parse(read_text(scratch.path() / "tables.json"));
  ASSERT_EQ(json["tables"].size(), 4U);
  for (const Json& table : json["tables"])
    for (const Json& row : table["rows"]) EXPECT_EQ(row.size(), table["columns"].size()) << table["name"];
  EXPECT_EQ(json["runs"].size(), runs.size());
  EXPECT_EQ(json["runs"][0]["state"], "done");
  for (const char* name : {"copying.svg", "induction.svg", "selection.svg", "mqar.svg"})
    EXPECT_TRUE(read_text(scratch.path() / name).ends_with("</svg>\n")) << name;
}

TEST(TaskTables, OfNothingSaySo) {
  const ScratchDirectory scratch;
  const std::string tables = write_task_tables(scratch.path(), task_runs(Recipe::fast));
  EXPECT_NE(tables.find("| Mamba | S6 | 99.8 | missing / missing / missing |"), std::string::npos) << tables;
  EXPECT_FALSE(std::filesystem::exists(scratch.path() / "mqar.svg"));
}

TEST(TaskCharts, EscapeNamesAndKeepInside) {
  const std::string lines = svg_of(LineChart{"a < b", "x & y", {{"one", {{64, 1.0}, {65536, 0.0}}}}});
  EXPECT_NE(lines.find("a &lt; b"), std::string::npos);
  EXPECT_NE(lines.find("x &amp; y"), std::string::npos);
  EXPECT_NE(lines.find("M52.0 52.0 672.0 352.0"), std::string::npos) << lines;
  const std::string bars = svg_of(BarChart{"t", {"published", "ours"}, {{"row", {0.5, -1}}, {"two", {0, 1}}}});
  EXPECT_NE(bars.find("width=\"260.0\""), std::string::npos) << bars;
  EXPECT_NE(bars.find("width=\"520.0\""), std::string::npos) << bars;
  EXPECT_THROW(svg_of(LineChart{}), Error);
}

}  // namespace
}  // namespace ssm
