// `ssm task`: the synthetic tasks on which mixers are compared, trained on fresh data and tested on fixed sequences
// (task/README.md). Here the flags become a run, and its result a table, JSON and a directory.
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "core/files.h"
#include "task/task_run.h"

namespace ssm::cli {
namespace {

std::string formatted(const char* pattern, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, pattern, value);
  return buffer;
}

std::string percent(double share) { return formatted("%.1f", 100 * share); }

Json json_of(const Accuracy& accuracy) {
  return {{"token_accuracy", accuracy.token()},
          {"sequence_accuracy", accuracy.sequence()},
          {"sequences", accuracy.sequences}};
}

Json json_of(const TaskEvaluation& one) {
  Json json = {{"step", one.step}, {"loss", one.loss}, {"seconds", one.seconds}};
  json.update(json_of(one.accuracy));
  return json;
}

Json json_of(const TaskTest& one) {
  Json json = {{"length", one.length}};
  json.update(one.failure.empty() ? json_of(one.accuracy) : Json{{"failure", one.failure}});
  json["seconds"] = one.seconds;
  return json;
}

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
    all.push_back({"out", &out_, "directory of the result: result.json, and the model"});
    return all;
  }

  int run(const Invocation& invocation) override {
    require_usage(!config_.task.empty(), "ssm task needs a task: selective-copying, copying, induction-heads or mqar");
    settle();
    quiet_ = invocation.common.quiet;
    const auto seed = static_cast<uint64_t>(invocation.common.seed);
    const DType dtype = invocation.common.dtype_kind().value_or(DType::f32);
    if (!out_.empty()) require_new(out_);
    const auto model = Model::create(config_.model(), seed,
                                     {.device = invocation.common.device_kind(), .dtype = dtype, .trainable = true});
    Threads threads(static_cast<int>(invocation.common.threads));
    note(text(quantity(static_cast<double>(model->params().count())), " parameters, ", config_.batch, " sequences of ",
              config_.shape(config_.length).inputs(), " tokens a step"),
         quiet_);
    const TaskResult result = train(*model, seed, threads);
    if (!result.why_not_recorded.empty())
      note("steps were not recorded as a graph, so their kernels were queued one by one: " + result.why_not_recorded,
           quiet_);
    const Json json = json_of(result, seed, std::string(name_of(dtype)));
    if (!out_.empty())
      write_directory(out_, [&](const Path& directory) {
        model->save(directory);
        write_file(directory / "result.json", json.dump(2) + "\n");
      });
    print(invocation.common.json ? json_line(json) : table(result));
    return result.ended == "interrupted" ? kInterrupted : 0;
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
    require(!std::filesystem::exists(directory, ignored) || std::filesystem::is_empty(directory, ignored),
            directory.string(), " exists; expected a new directory for --out");
  }

  TaskResult train(Model& model, uint64_t seed, Threads& threads) {
    Progress progress(quiet_);
    double seconds = 0;
    std::string accuracy;
    TaskObserver observer;
    observer.go_on = [] { return !interrupted(); };
    observer.step = [&](const StepResult& step) {
      seconds += step.seconds;
      const double rate = static_cast<double>(step.step) / seconds;
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
    return run_task(model, config_, seed, threads, observer);
  }

  Json json_of(const TaskResult& result, uint64_t seed, const std::string& dtype) {
    Json json = {{"task", config_.task},
                 {"mixer", config_.mixer},
                 {"parameters", result.parameters},
                 {"seed", seed},
                 {"dtype", dtype},
                 {"steps", result.steps},
                 {"ended", result.ended},
                 {"train_seconds", result.train_seconds},
                 {"seconds", result.seconds}};
    json["tests"] = Json::array();
    for (const TaskTest& one : result.tests) json["tests"].push_back(cli::json_of(one));
    json["evaluations"] = Json::array();
    for (const TaskEvaluation& one : result.evaluations) json["evaluations"].push_back(cli::json_of(one));
    json["settings"] = Json::parse(write_json(config_.fields(), 0));
    return json;
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
  std::string out_;
  bool quiet_ = false;
};

}  // namespace

std::unique_ptr<Command> make_task() { return std::make_unique<Task>(); }

}  // namespace ssm::cli
