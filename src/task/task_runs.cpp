// The list, as data: what every task has in common by recipe, then a line a row. Where a row needs another recipe than
// its task (attention's rate, a test that fits in memory) the line says so.
#include "task/task_runs.h"

#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace ssm {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<const char*, 3> kRecipes = {"quick", "fast", "paper"};

// Of a task, for quick, fast and paper. What none of them says is the paper's (task_config.cpp).
struct TaskRecipes {
  const char* task;
  std::array<const char*, 3> recipes;
};
constexpr std::array<TaskRecipes, 3> kTasks = {{
    {"selective-copying",
     {R"({"length": 256, "batch": 16, "steps": 5000, "lr": 5e-3, "warmup": 200, "schedule": "cosine",
          "curriculum": 2500, "shortest": 8, "stop_after": 2})",
      R"({"steps": 4000, "lr": 5e-3, "warmup": 200, "schedule": "cosine", "curriculum": 2000, "shortest": 8,
          "eval_every": 250, "stop_after": 2})",
      R"({})"}},
    {"induction-heads",
     {R"({"steps": 5000, "lr": 1e-3, "warmup": 200, "curriculum": 2000, "shortest": 16, "eval_length": 4096, "eval_every": 500, "stop_after": 3,
          "eval_sequences": 64, "test_tokens": 1048576,
          "test_lengths": [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]})",
      R"({"steps": 30000, "lr": 1e-3, "warmup": 200, "curriculum": 3000, "shortest": 16, "eval_length": 4096,
          "eval_every": 2500})",
      R"({})"}},
    {"mqar",
     {R"({"length": 64, "vocab": 256, "batch": 32, "steps": 4000, "warmup": 100, "schedule": "cosine", "curriculum": 1500,
          "shortest": 16, "heads": 1, "stop_after": 2})",
      R"({"steps": 12000, "warmup": 200, "schedule": "cosine", "curriculum": 4000, "shortest": 32, "heads": 1,
          "stop_after": 2})",
      R"({"heads": 1})"}},
}};

struct Row {
  const char* name;
  const char* task;
  const char* settings;  // what the row is
  int64_t seeds = 1;
  const char *quick = "{}", *fast = "{}";  // over its task's
};
// Attention reads the whole past for every token: a test with fewer sequences, and of fewer lengths on a CPU.
constexpr const char* kShortTest = R"({"eval_length": 256, "test_tokens": 131072,
                                       "test_lengths": [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]})";
constexpr const char* kFewSequences = R"({"eval_length": 256, "test_tokens": 4194304})";
// Learned positions end where the paper's test of them does.
constexpr const char* kLearned = R"({"eval_length": 256,
                                     "test_lengths": [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]})";

const std::vector<Row>& rows() {
  static const std::vector<Row> all = {
      {"copying-mamba", "selective-copying", R"({"mixer": "mamba"})", 3},
      {"copying-s4", "selective-copying", R"({"mixer": "s4"})"},
      {"copying-h3-s4", "selective-copying", R"({"mixer": "h3-s4"})"},
      {"copying-mamba-s4", "selective-copying", R"({"mixer": "mamba-s4"})"},
      {"copying-s6", "selective-copying", R"({"mixer": "s6"})"},
      {"copying-h3-s6", "selective-copying", R"({"mixer": "h3-s6"})"},
      {"copying-selects-none", "selective-copying", R"({"ssm_cfg": "{\"selective\": \"none\"}"})"},
      {"copying-selects-dt", "selective-copying", R"({"ssm_cfg": "{\"selective\": \"dt\"}"})"},
      {"copying-selects-B", "selective-copying", R"({"ssm_cfg": "{\"selective\": \"B\"}"})"},
      {"copying-selects-C", "selective-copying", R"({"ssm_cfg": "{\"selective\": \"C\"}"})"},
      {"copying-selects-BC", "selective-copying", R"({"ssm_cfg": "{\"selective\": \"BC\"}"})"},

      {"induction-mamba", "induction-heads", R"({"mixer": "mamba"})", 3},
      {"induction-attention-learned", "induction-heads", R"({"mixer": "attention", "positions": "learned"})", 1,
       kShortTest, kLearned},
      {"induction-attention-rope", "induction-heads", R"({"mixer": "attention", "positions": "rope"})", 1, kShortTest,
       kFewSequences},
      {"induction-attention-alibi", "induction-heads", R"({"mixer": "attention", "positions": "alibi"})", 1, kShortTest,
       kFewSequences},
      {"induction-attention-none", "induction-heads", R"({"mixer": "attention", "positions": "none"})", 1, kShortTest,
       kFewSequences},
      {"induction-lstm", "induction-heads", R"({"mixer": "lstm"})"},
      {"induction-s4d", "induction-heads", R"({"mixer": "s4d"})"},
      {"induction-conv", "induction-heads", R"({"mixer": "conv"})"},
      {"induction-mamba2", "induction-heads", R"({"mixer": "mamba2"})"},
      {"induction-selects-none", "induction-heads", R"({"ssm_cfg": "{\"selective\": \"none\"}"})"},
      {"induction-selects-dt", "induction-heads", R"({"ssm_cfg": "{\"selective\": \"dt\"}"})"},
      {"induction-selects-B", "induction-heads", R"({"ssm_cfg": "{\"selective\": \"B\"}"})"},
      {"induction-selects-C", "induction-heads", R"({"ssm_cfg": "{\"selective\": \"C\"}"})"},
      {"induction-selects-BC", "induction-heads", R"({"ssm_cfg": "{\"selective\": \"BC\"}"})"},

      {"mqar-attention-32", "mqar", R"({"mixer": "attention", "d_model": 32})"},
      {"mqar-attention-64", "mqar", R"({"mixer": "attention", "d_model": 64})"},
      {"mqar-attention-128", "mqar", R"({"mixer": "attention", "d_model": 128})"},
      {"mqar-attention-256", "mqar", R"({"mixer": "attention", "d_model": 256})"},
      {"mqar-mamba-32", "mqar", R"({"mixer": "mamba", "d_model": 32})"},
      {"mqar-mamba-64", "mqar", R"({"mixer": "mamba", "d_model": 64})"},
      {"mqar-mamba-128", "mqar", R"({"mixer": "mamba", "d_model": 128})"},
      {"mqar-mamba-256", "mqar", R"({"mixer": "mamba", "d_model": 256})"},
      {"mqar-mamba2-32", "mqar", R"({"mixer": "mamba2", "d_model": 32})"},
      {"mqar-mamba2-64", "mqar", R"({"mixer": "mamba2", "d_model": 64})"},
      {"mqar-mamba2-128", "mqar", R"({"mixer": "mamba2", "d_model": 128})"},
      {"mqar-mamba2-256", "mqar", R"({"mixer": "mamba2", "d_model": 256})"},
      {"mqar-s4d-32", "mqar", R"({"mixer": "s4d", "d_model": 32})"},
      {"mqar-s4d-64", "mqar", R"({"mixer": "s4d", "d_model": 64})"},
      {"mqar-s4d-128", "mqar", R"({"mixer": "s4d", "d_model": 128})"},
      {"mqar-s4d-256", "mqar", R"({"mixer": "s4d", "d_model": 256})"},
  };
  return all;
}

Json settings_of(const Row& row, Recipe recipe) {
  Json settings = {{"task", row.task}};
  for (const TaskRecipes& task : kTasks)
    if (row.task == std::string_view(task.task))
      settings.update(Json::parse(task.recipes.at(static_cast<size_t>(recipe))));
  settings.update(Json::parse(row.settings));
  if (recipe != Recipe::paper) settings.update(Json::parse(recipe == Recipe::quick ? row.quick : row.fast));
  return settings;
}

// As one word for a shell.
std::string quoted(const std::string& word) {
  if (!word.empty() && word.find_first_of(" \"'\\{}*?$&|;<>()`#~") == std::string::npos) return word;
  std::string safe = "'";
  for (const char c : word) safe += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return safe + "'";
}

}  // namespace

Recipe recipe_named(std::string_view name) {
  std::string known;
  for (size_t i = 0; i < kRecipes.size(); ++i) {
    if (name == kRecipes.at(i)) return static_cast<Recipe>(i);
    known += text(i == 0 ? "" : ", ", kRecipes.at(i));
  }
  throw Error("recipe is \"", name, "\", expected one of ", known);
}

TaskConfig TaskRun::config() const {
  TaskConfig config;
  read_json(config.fields(), settings, name);
  return config;
}

std::vector<std::string> TaskRun::words() const {
  std::vector<std::string> all;
  const auto word_of = [](const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); };
  const Json object = Json::parse(settings);
  for (const auto& [key, value] : object.items()) {
    if (key == "task") {
      all.push_back(value);
      continue;
    }
    std::string flag = "--" + key;
    std::replace(flag.begin(), flag.end(), '_', '-');
    all.push_back(flag);
    if (value.is_array())
      for (const Json& one : value) all.push_back(word_of(one));
    else
      all.push_back(word_of(value));
  }
  all.emplace_back("--seed");
  all.push_back(std::to_string(seed));
  return all;
}

std::string TaskRun::command() const {
  std::string line = "ssm task";
  for (const std::string& word : words()) line += " " + quoted(word);
  return line;
}

std::vector<TaskRun> task_runs(Recipe recipe, int64_t seeds, std::string_view given) {
  const Json over = Json::parse(given);
  std::vector<TaskRun> all;
  for (const Row& row : rows())
    for (int64_t seed = 0; seed < (seeds > 0 ? seeds : row.seeds); ++seed) {
      Json settings = settings_of(row, recipe);
      settings.update(over);
      all.push_back({text(row.name, "-", seed), row.name, seed, settings.dump()});
    }
  return all;
}

bool matches(std::string_view name, std::string_view pattern) {
  return fnmatch(text("*", pattern, "*").c_str(), std::string(name).c_str(), 0) == 0;
}

}  // namespace ssm
