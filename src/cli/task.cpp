// `ssm task`: the synthetic tasks on which mixers are compared, trained on fresh data and tested on fixed sequences
// (task/README.md). Here the flags become a run, and its result a table, JSON and a directory; --all is task_all.h's.
#include <cstdio>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/model_flags.h"
#include "cli/task_all.h"
#include "cli/terminal.h"
#include "core/files.h"
#include "task/task_result.h"
#include "task/task_tables.h"

namespace ssm::cli {
namespace {

std::string formatted(const char* pattern, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, pattern, value);
  return buffer;
}

std::string percent(double share) { return formatted("%.1f", 100 * share); }

class Task : public Command {
 public:
  std::string name() const override { return "task"; }
  std::string summary() const override { return "the synthetic tasks: selective copying, induction heads, MQAR"; }
  std::string example() const override {
    return "ssm task induction-heads --mixer mamba --stop-after 3 --out runs/induction";
  }
  std::vector<std::string> positional() const override { return {"task"}; }

  Fields fields() override {
    Fields all = config_.fields();
    const Fields rest = {
        {"out", &out_, "directory of the run: result.json, and checkpoints, which are MODELs; with --all of all runs"},
        {"resume", &resume_, "go on with the run in this directory, with its own settings"},
        {"all", &all_, "make every table that compares mixers: runs, tables.md, tables.json and charts in --out"},
        {"recipe", &runs_.recipe, "--all: quick (minutes on a laptop), fast (a GPU) or paper (published settings)"},
        {"only", &runs_.only, "--all: runs whose name has this shell pattern in it"},
        {"seeds", &runs_.seeds, "--all: runs of each row; 0: three of Mamba, else one"},
        {"jobs", &runs_.jobs, "--all: runs at the same time"},
        {"list", &runs_.list, "--all: print the runs and their command lines, make none"}};
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  }

  int run(const Invocation& invocation) override {
    if (all_) {
      require_usage(config_.task.empty(), "--all makes the runs of every task; leave ", config_.task,
                    " out, or use --only");
      require_usage(resume_.empty(), "--all goes on by itself with what --out has; leave --resume out");
      runs_.out = out_;
      return run_all_tasks(runs_, invocation, given_settings(invocation));
    }
    for (const char* name : {"recipe", "only", "seeds", "jobs", "list"})
      require_usage(!invocation.has(name), flag_of(name), " is for --all");
    quiet_ = invocation.common.quiet;
    auto seed = static_cast<uint64_t>(invocation.common.seed);
    DType dtype = invocation.common.dtype_kind().value_or(DType::f32);
    if (!resume_.empty()) {
      const TaskRecord record = recorded(invocation);
      config_ = record.config;
      seed = record.seed;
      dtype = *dtype_named(record.dtype);
      out_ = resume_;
    }
    require_usage(!config_.task.empty(), "ssm task needs a task: selective-copying, copying, induction-heads or mqar");
    settle();
    if (resume_.empty() && !out_.empty()) require_new(out_);
    const ModelOptions options{.device = invocation.common.device_kind(), .dtype = dtype, .trainable = true};
    const auto model = resume_.empty() ? Model::create(config_.model(), seed, options)
                                       : Model::open(newest_checkpoint(resume_), options);
    std::optional<RunDirectory> directory;
    if (!out_.empty()) directory.emplace(resume_.empty() ? RunDirectory::start(out_) : RunDirectory::resume(out_));
    Threads threads(static_cast<int>(invocation.common.threads));
    note(text(quantity(static_cast<double>(model->params().count())), " parameters, ", config_.batch, " sequences of ",
              config_.shape(config_.length).inputs(), " tokens a step"),
         quiet_);
    const TaskResult result = train(*model, seed, threads, directory ? &*directory : nullptr);
    if (!result.why_not_recorded.empty())
      note("steps were not recorded as a graph, so their kernels were queued one by one: " + result.why_not_recorded,
           quiet_);
    const bool whole = result.ended != "interrupted";
    const TaskRecord record{config_, seed, std::string(name_of(dtype)), result};
    if (!out_.empty() && whole) write_file(Path(out_) / kResult, task_result_json(record) + "\n");
    print(invocation.common.json ? task_result_json(record, -1) + "\n" : table(result));
    if (whole) return 0;
    if (!out_.empty()) note("interrupted; go on with: ssm task --resume " + out_, quiet_);
    return kInterrupted;
  }

 private:
  void settle() {
    struct {
      TaskConfig& config;
      void check() const { config.settle(); }
    } settled{config_};
    check_flags(settled);
  }

  static void require_new(const Path& directory) {
    std::error_code ignored;
    require(!std::filesystem::exists(directory / kResult, ignored), directory.string(),
            " holds the result of a run; expected another directory for --out");
    check_new_run(directory);
  }

  // The run so far in --resume. Its settings are what it began with, so the command line says none.
  TaskRecord recorded(const Invocation& invocation) {
    for (const std::string& name : names_of(config_.fields()))
      require_usage(!invocation.has(name), flag_of(name),
                    " with --resume: a run goes on with its own settings; leave it out");
    for (const char* name : {"out", "seed", "dtype"})
      require_usage(!invocation.has(name), flag_of(name), " with --resume: a run goes on with its own; leave it out");
    std::error_code ignored;
    require(!std::filesystem::exists(Path(resume_) / kResult, ignored), resume_,
            " holds the result of a run that is over; see ", (Path(resume_) / kResult).string());
    return read_task_result(newest_checkpoint(resume_) / kResultSoFar);
  }

  // What the command line says over the recipe of --all, as one JSON object.
  std::string given_settings(const Invocation& invocation) {
    Fields given;
    for (const Field& field : config_.fields())
      if (invocation.has(field.name)) given.push_back(field);
    return write_json(given, 0);
  }

  TaskResult train(Model& model, uint64_t seed, Threads& threads, RunDirectory* directory) {
    Progress progress(quiet_);
    double seconds = 0;
    int64_t steps = 0;
    std::string accuracy;
    TaskObserver observer;
    observer.go_on = [] { return !interrupted(); };
    observer.step = [&](const StepResult& step) {
      seconds += step.seconds;
      const double rate = static_cast<double>(++steps) / seconds;
      double left = static_cast<double>(config_.rate.steps - step.step) / rate;
      if (config_.minutes > 0) left = std::min(left, 60 * config_.minutes - seconds);
      progress.show(text("step ", step.step, "/", config_.rate.steps, " · loss ", formatted("%.4f", step.loss),
                         accuracy, " · ", formatted("%.1f", rate), " steps/s · ETA ", duration(std::max(0.0, left))));
    };
    observer.evaluated = [&](const TaskEvaluation& one) {
      accuracy = text(" · held back ", percent(one.accuracy.token()), "% of answers, ",
                      percent(one.accuracy.sequence()), "% of sequences");
    };
    observer.tested = [&](const TaskTest& one) {
      progress.show(
          text("test at ", one.length, " · ", one.failure.empty() ? percent(one.accuracy.token()) + "%" : one.failure));
    };
    return run_task(model, config_, seed, threads, observer, directory);
  }

  std::string table(const TaskResult& result) const {
    std::string lines = text(config_.task, ", ", config_.mixer, ": ", result.steps, " steps in ",
                             duration(result.train_seconds), " (ended: ", result.ended, ")\n");
    lines += "    length  answers %  sequences %  of\n";
    for (const TaskTest& one : result.tests) {
      char line[96];
      std::snprintf(line, sizeof line, "%10lld  %9s  %11s  %s\n", static_cast<long long>(one.length),
                    one.failure.empty() ? percent(one.accuracy.token()).c_str() : "-",
                    one.failure.empty() ? percent(one.accuracy.sequence()).c_str() : "-",
                    one.failure.empty() ? std::to_string(one.accuracy.sequences).c_str() : one.failure.c_str());
      lines += line;
    }
    return lines;
  }

  TaskConfig config_;
  AllTasks runs_;
  std::string out_, resume_;
  bool all_ = false, quiet_ = false;
};

}  // namespace

std::unique_ptr<Command> make_task() { return std::make_unique<Task>(); }

}  // namespace ssm::cli
