// The loop: step, evaluate, stop; then the test, length by length.
#include "task/task_run.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "task/task_result.h"

namespace ssm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

bool perfect(const Accuracy& accuracy) { return accuracy.answers > 0 && accuracy.right == accuracy.answers; }

TaskTest test(const Model& model, const TaskConfig& config, int64_t length, uint64_t seed, Threads& threads,
              const TaskObserver& observer) {
  TaskTest result{.length = length};
  const Clock::time_point begin = Clock::now();
  const TaskShape shape = config.shape(length);
  try {
    result.accuracy =
        accuracy(model, threads, shape, seed,
                 {.sequences = std::clamp<int64_t>(config.test_tokens / shape.inputs(), 1, config.eval_sequences),
                  .go_on = observer.go_on});
  } catch (const Error& problem) {
    const std::string what = problem.what();
    if (what.find("out of memory") == std::string::npos) throw;
    result.failure = "out of memory";
  }
  result.seconds = seconds_since(begin);
  return result;
}

}  // namespace

TaskResult run_task(Model& model, const TaskConfig& config, uint64_t seed, Threads& threads,
                    const TaskObserver& observer, RunDirectory* directory) {
  TrainingState start{.seed = static_cast<int64_t>(seed), .dtype = std::string(name_of(model.options().dtype))};
  start.config.batch = config.batch;
  start.config.length = config.length;
  start.config.rate = config.rate;
  start.config.optimizer = config.optimizer;
  start.config.cuda_graph = config.cuda_graph;
  TaskResult result;
  const bool goes_on = directory && directory->saved_step() >= 0;
  if (goes_on) {
    const TrainingState saved = read_training_state(directory->checkpoint());
    start.step = saved.step;
    start.tokens = saved.tokens;
    result = read_task_result(directory->checkpoint() / kResultSoFar).result;
  }
  result.parameters = model.params().count();
  result.ended = "steps";
  const TaskShape shape = config.shape(config.length);
  const TaskStream stream(shape, seed, config.batch, config.curriculum, config.shortest);
  Trainer trainer(model, stream, threads, start);
  if (goes_on) trainer.load_optimizer(directory->checkpoint());

  const Clock::time_point begin = Clock::now();
  const double before = result.seconds;  // of this run in other processes
  const auto elapsed = [&] { return before + seconds_since(begin); };
  const auto save = [&] {
    if (!directory) return;
    result.seconds = elapsed();
    directory->save(result.steps, 1, [&](const Path& to) {
      trainer.write_checkpoint(to);
      write_file(to / kResultSoFar, task_result_json({config, seed, start.dtype, result}) + "\n");
    });
  };
  save();
  const auto solved = [&] { return config.stop_after > 0 && result.perfect_in_a_row >= config.stop_after; };
  const auto out_of_time = [&] { return config.minutes > 0 && elapsed() >= 60 * config.minutes; };
  bool stopped = goes_on && (solved() || out_of_time());  // behind its training
  if (stopped) result.ended = solved() ? "solved" : "minutes";
  while (!trainer.done() && !stopped) {
    const bool evaluates = (trainer.state().step + 1) % config.eval_every == 0;
    StepResult step = trainer.step(evaluates ? Ahead::no : Ahead::yes);
    const auto note = [&] {
      result.steps = step.step;
      result.train_seconds += step.seconds;
      if (directory) directory->log(step.json());
      observer.step(step);
    };
    note();
    const bool interrupted = !observer.go_on();
    stopped = out_of_time();
    if (interrupted || stopped) {
      while (trainer.is_ahead()) {  // what has begun is part of the model
        step = trainer.step();
        note();
      }
      result.ended = interrupted ? "interrupted" : "minutes";
      if (interrupted) break;
    }
    if (!stopped && !trainer.done() && !evaluates) continue;
    TaskEvaluation evaluation{.step = step.step, .loss = step.loss};
    evaluation.accuracy = accuracy(model, threads, config.shape(config.eval_length), seed,
                                   {.sequences = config.eval_sequences, .go_on = observer.go_on});
    if (!observer.go_on()) {  // what an interrupt cut short is no evaluation
      result.ended = "interrupted";
      break;
    }
    evaluation.seconds = elapsed();
    result.evaluations.push_back(evaluation);
    observer.evaluated(evaluation);
    result.perfect_in_a_row =
        perfect(evaluation.accuracy) && step.step >= config.curriculum ? result.perfect_in_a_row + 1 : 0;
    if (!stopped && solved()) {
      result.ended = "solved";
      stopped = true;
    }
    save();
  }
  if (result.ended == "interrupted") save();
  result.why_not_recorded = trainer.why_not_recorded();
  for (const int64_t length : config.test_lengths) {
    if (!observer.go_on()) result.ended = "interrupted";
    if (result.ended == "interrupted") break;
    TaskTest one = test(model, config, length, seed, threads, observer);
    if (!observer.go_on()) continue;  // what an interrupt cut short is no result
    result.tests.push_back(one);
    observer.tested(one);
  }
  result.seconds = elapsed();
  return result;
}

}  // namespace ssm
