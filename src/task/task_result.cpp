#include "task/task_result.h"

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace ssm {
namespace {

using Json = nlohmann::ordered_json;

void add(Json& to, const Accuracy& accuracy) {
  to["token_accuracy"] = accuracy.token();
  to["sequence_accuracy"] = accuracy.sequence();
  to["answers"] = accuracy.answers;
  to["right"] = accuracy.right;
  to["sequences"] = accuracy.sequences;
  to["whole"] = accuracy.whole;
}

Accuracy accuracy_of(const Json& json) {
  return {.answers = json.at("answers"),
          .right = json.at("right"),
          .sequences = json.at("sequences"),
          .whole = json.at("whole")};
}

TaskRecord record_of(const Json& json, const std::string& where) {
  TaskRecord record;
  TaskResult& result = record.result;
  read_json(record.config.fields(), json.at("settings").dump(), where);
  record.seed = json.at("seed");
  record.dtype = json.at("dtype");
  result.parameters = json.at("parameters");
  result.steps = json.at("steps");
  result.ended = json.at("ended");
  result.train_seconds = json.at("train_seconds");
  result.seconds = json.at("seconds");
  result.perfect_in_a_row = json.at("perfect_in_a_row");
  for (const Json& one : json.at("tests")) {
    TaskTest test{.length = one.at("length"), .seconds = one.at("seconds")};
    if (one.contains("failure"))
      test.failure = one.at("failure");
    else
      test.accuracy = accuracy_of(one);
    result.tests.push_back(test);
  }
  for (const Json& one : json.at("evaluations"))
    result.evaluations.push_back(
        {.step = one.at("step"), .loss = one.at("loss"), .seconds = one.at("seconds"), .accuracy = accuracy_of(one)});
  return record;
}

}  // namespace

std::string task_result_json(const TaskRecord& record, int indent) {
  TaskConfig config = record.config;  // a list of fields points into what may be written to
  const TaskResult& result = record.result;
  Json json = {{"task", config.task},
               {"mixer", config.mixer},
               {"parameters", result.parameters},
               {"seed", record.seed},
               {"dtype", record.dtype},
               {"steps", result.steps},
               {"ended", result.ended},
               {"train_seconds", result.train_seconds},
               {"seconds", result.seconds},
               {"perfect_in_a_row", result.perfect_in_a_row},
               {"tests", Json::array()},
               {"evaluations", Json::array()}};
  for (const TaskTest& test : result.tests) {
    Json one = {{"length", test.length}};
    if (test.failure.empty())
      add(one, test.accuracy);
    else
      one["failure"] = test.failure;
    one["seconds"] = test.seconds;
    json["tests"].push_back(one);
  }
  for (const TaskEvaluation& evaluation : result.evaluations) {
    Json one = {{"step", evaluation.step}, {"loss", evaluation.loss}, {"seconds", evaluation.seconds}};
    add(one, evaluation.accuracy);
    json["evaluations"].push_back(one);
  }
  json["settings"] = Json::parse(write_json(config.fields(), 0));
  return json.dump(indent);
}

TaskRecord read_task_result(const Path& path) {
  const std::string all = read_text(path);
  try {
    return record_of(Json::parse(all), path.string());
  } catch (const Json::exception& problem) {
    throw Error(path.string(), " is no result of ssm task: ", problem.what());
  }
}

}  // namespace ssm
