// Rows as data, then a function a table. Published: Gu & Dao 2023, "Mamba", tables 1 and 11 (selective copying,
// induction heads).
#include "task/task_tables.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "task/task_charts.h"
#include "task/task_result.h"

namespace ssm {
namespace {

using Json = nlohmann::ordered_json;

struct CopyingRow {
  const char *architecture, *inner, *row;
  double published;
};
constexpr std::array<CopyingRow, 6> kCopying = {{{"no gate", "S4", "copying-s4", 18.3},
                                                 {"no gate", "S6", "copying-s6", 97.0},
                                                 {"H3", "S4", "copying-h3-s4", 57.0},
                                                 {"H3", "S6", "copying-h3-s6", 99.7},
                                                 {"Mamba", "S4", "copying-mamba-s4", 56.4},
                                                 {"Mamba", "S6", "copying-mamba", 99.8}}};

struct NamedRow {
  const char *label, *row;
};
constexpr std::array<NamedRow, 9> kInduction = {{{"Mamba", "induction-mamba"},
                                                 {"Mamba-2", "induction-mamba2"},
                                                 {"attention, learned positions", "induction-attention-learned"},
                                                 {"attention, RoPE", "induction-attention-rope"},
                                                 {"attention, ALiBi", "induction-attention-alibi"},
                                                 {"attention, no positions", "induction-attention-none"},
                                                 {"LSTM", "induction-lstm"},
                                                 {"S4D", "induction-s4d"},
                                                 {"convolution", "induction-conv"}}};

struct PublishedLengths {
  const char* label;
  std::vector<double> percent;  // at 2^6, 2^7 and so on; what is left out was out of memory
};
const std::vector<PublishedLengths>& published_induction() {
  static const std::vector<PublishedLengths> all = {
      {"attention, absolute positions", {100, 99.6, 100, 58.6, 26.6, 18.8, 9.8, 10.9, 7.8}},
      {"attention, RoPE", {100, 100, 100, 83.6, 31.3, 18.4, 8.6, 9.0, 5.5}},
      {"attention, xPos", {100, 100, 100, 99.6, 67.6, 25.4, 7.0, 9.0, 7.8}},
      {"H3", {100, 100, 100, 80.9, 39.5, 23.8, 14.8, 8.2, 5.9, 6.6, 8.2, 4.7, 8.2, 6.3, 7.4}},
      {"Hyena", {97.7, 100, 100, 100, 44.1, 12.5, 6.6, 5.1, 7.0, 5.9, 6.6, 6.6, 5.9, 6.3, 9.8}},
      {"Mamba", std::vector<double>(15, 100)}};
  return all;
}

struct SelectionRow {
  const char *label, *copying, *induction;
};
constexpr std::array<SelectionRow, 6> kSelection = {{{"none", "copying-selects-none", "induction-selects-none"},
                                                     {"dt", "copying-selects-dt", "induction-selects-dt"},
                                                     {"B", "copying-selects-B", "induction-selects-B"},
                                                     {"C", "copying-selects-C", "induction-selects-C"},
                                                     {"B, C", "copying-selects-BC", "induction-selects-BC"},
                                                     {"dt, B, C (Mamba)", "copying-mamba", "induction-mamba"}}};

constexpr std::array<NamedRow, 4> kMqar = {
    {{"attention", "mqar-attention"}, {"Mamba", "mqar-mamba"}, {"Mamba-2", "mqar-mamba2"}, {"S4D", "mqar-s4d"}}};
constexpr std::array<int64_t, 4> kWidths = {32, 64, 128, 256};

constexpr double kFallsOff = 0.9;  // of the answers

// A run that was looked for.
struct Found {
  TaskRun run;
  std::optional<TaskRecord> record;
  std::string problem;  // "" with a record
  std::string state;    // done, failed, unfinished or missing
};

using Rows = std::map<std::string, std::vector<Found>>;  // by TaskRun::row

struct Table {
  std::string name, title, remark;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
};

std::string percent(double share) {
  char buffer[32];
  // 99.97 is not 100.
  std::snprintf(buffer, sizeof buffer, "%.1f", share < 1 ? std::min(100 * share, 99.9) : 100.0);
  return buffer;
}

std::string number(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.1f", value);
  return buffer;
}

Found look(const Path& directory, const TaskRun& run) {
  Found found{run, {}, "", "missing"};
  const Path at = directory / run.name;
  std::error_code ignored;
  try {
    if (std::filesystem::exists(at / kResult, ignored)) {
      found.record = read_task_result(at / kResult);
      found.state = "done";
      return found;
    }
    if (std::filesystem::exists(at / kFailure, ignored)) {
      found.problem = read_text(at / kFailure);
      while (!found.problem.empty() && found.problem.back() == '\n') found.problem.pop_back();
      found.state = "failed";
      return found;
    }
  } catch (const Error& problem) {
    found.problem = problem.what();
    found.state = "failed";
    return found;
  }
  if (std::filesystem::exists(at / "latest", ignored)) found.state = "unfinished";
  found.problem = found.state;
  return found;
}

const TaskTest* test_at(const TaskRecord& record, int64_t length) {
  for (const TaskTest& test : record.result.tests)
    if (test.length == length) return &test;
  return nullptr;
}

// What is common to a row's runs, each as text, "a / b / c"; where there is no result, its state.
template <class Of>
std::string each(const std::vector<Found>& runs, const Of& of) {
  std::string cells;
  for (const Found& found : runs)
    cells += (cells.empty() ? "" : " / ") + (found.record ? of(*found.record) : found.state);
  return cells;
}

// The lowest share of a row's runs at a length; less than 0: none has one.
double lowest(const std::vector<Found>& runs, int64_t length) {
  double least = -1;
  for (const Found& found : runs) {
    const TaskTest* const test = found.record ? test_at(*found.record, length) : nullptr;
    if (!test || !test->failure.empty()) continue;
    const double share = test->accuracy.token();
    least = least < 0 ? share : std::min(least, share);
  }
  return least;
}

std::string cell_at(const std::vector<Found>& runs, int64_t length) {
  const double share = lowest(runs, length);
  if (share >= 0) return percent(share);
  for (const Found& found : runs) {
    if (!found.record) return found.state;
    const TaskTest* const test = test_at(*found.record, length);
    if (test) return test->failure;
  }
  return "-";
}

double last_share(const std::vector<Found>& runs) {
  double least = -1;
  for (const Found& found : runs)
    if (found.record && !found.record->result.tests.empty() && found.record->result.tests.back().failure.empty()) {
      const double share = found.record->result.tests.back().accuracy.token();
      least = least < 0 ? share : std::min(least, share);
    }
  return least;
}

std::string last_answers(const TaskRecord& record) {
  const auto& tests = record.result.tests;
  return tests.empty()                  ? "-"
         : tests.back().failure.empty() ? percent(tests.back().accuracy.token())
                                        : tests.back().failure;
}

std::string last_sequences(const TaskRecord& record) {
  const auto& tests = record.result.tests;
  return tests.empty() || !tests.back().failure.empty() ? "-" : percent(tests.back().accuracy.sequence());
}

std::string power(int64_t length) {
  int64_t exponent = 0;
  while ((int64_t{1} << exponent) < length) ++exponent;
  return (int64_t{1} << exponent) == length ? text("2^", exponent) : std::to_string(length);
}

std::string length_of(const Rows& rows, const char* row) {
  const auto found = rows.find(row);
  if (found == rows.end()) return "";
  for (const Found& one : found->second)
    if (one.record) return std::to_string(one.record->config.length);
  return "";
}

Table copying_table(const Rows& rows) {
  Table table{"copying",
              "Selective copying: architecture and inner layer",
              "% of answers (of whole sequences), each seed.",
              {"architecture", "inner layer", "published", "answers %", "sequences %", "steps", "training, minutes"},
              {}};
  if (const std::string length = length_of(rows, "copying-mamba"); !length.empty())
    table.remark += " " + length + " noise tokens; published: 4,096.";
  for (const CopyingRow& row : kCopying) {
    const std::vector<Found>& runs = rows.at(row.row);
    table.rows.push_back({row.architecture, row.inner, number(row.published), each(runs, last_answers),
                          each(runs, last_sequences),
                          each(runs, [](const TaskRecord& one) { return std::to_string(one.result.steps); }),
                          each(runs, [](const TaskRecord& one) { return number(one.result.train_seconds / 60); })});
  }
  return table;
}

std::vector<int64_t> tested_lengths(const Rows& rows) {
  std::vector<int64_t> lengths;
  for (const NamedRow& row : kInduction)
    for (const Found& found : rows.at(row.row))
      if (found.record)
        for (const TaskTest& test : found.record->result.tests) lengths.push_back(test.length);
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

// "2^12", the first tested length at which less than 90 % are right.
std::string falls_off(const std::vector<Found>& runs, const std::vector<int64_t>& lengths) {
  bool any = false;
  for (const int64_t length : lengths) {
    const double share = lowest(runs, length);
    any = any || share >= 0;
    if (share >= 0 && share < kFallsOff) return power(length);
  }
  return any ? "nowhere" : "-";
}

std::string memory_ends(const std::vector<Found>& runs, const std::vector<int64_t>& lengths) {
  for (const int64_t length : lengths)
    for (const Found& found : runs)
      if (const TaskTest* const test = found.record ? test_at(*found.record, length) : nullptr)
        if (!test->failure.empty()) return power(length);
  return lowest(runs, lengths.empty() ? 0 : lengths.back()) >= 0 ? "nowhere" : "-";
}

Table induction_table(const Rows& rows) {
  Table table{"induction",
              "Induction heads: extrapolation",
              "% of answers at each length, the lowest of the seeds. Falls off: the first length below 90 %.",
              {"model", "seeds"},
              {}};
  if (const std::string length = length_of(rows, "induction-mamba"); !length.empty())
    table.remark += " Trained at " + length + "; published: at 256, as far as memory went.";
  const std::vector<int64_t> lengths = tested_lengths(rows);
  for (const int64_t length : lengths) table.columns.push_back(power(length));
  table.columns.insert(table.columns.end(), {"falls off", "memory ends"});
  for (const NamedRow& row : kInduction) {
    const std::vector<Found>& runs = rows.at(row.row);
    const auto done = std::count_if(runs.begin(), runs.end(), [](const Found& one) { return one.record.has_value(); });
    std::vector<std::string> cells = {row.label, done > 0 ? std::to_string(done) : each(runs, last_answers)};
    for (const int64_t length : lengths) cells.push_back(done > 0 ? cell_at(runs, length) : "-");
    cells.push_back(falls_off(runs, lengths));
    cells.push_back(memory_ends(runs, lengths));
    table.rows.push_back(cells);
  }
  for (const PublishedLengths& row : published_induction()) {
    std::vector<std::string> cells = {text(row.label, ", published"), "1"};
    std::string falls = "nowhere";
    for (size_t i = row.percent.size(); i-- > 0;)
      if (row.percent[i] < 100 * kFallsOff) falls = text("2^", i + 6);
    for (const int64_t length : lengths) {
      const auto at = static_cast<int64_t>(std::llround(std::log2(static_cast<double>(length)))) - 6;
      const bool known = at >= 0 && at < static_cast<int64_t>(row.percent.size()) && (int64_t{64} << at) == length;
      cells.push_back(known ? number(row.percent[static_cast<size_t>(at)]) : "-");
    }
    cells.push_back(falls);
    cells.push_back(row.percent.size() < 15 ? text("2^", row.percent.size() + 6) : "nowhere");
    table.rows.push_back(cells);
  }
  return table;
}

constexpr std::array<int64_t, 4> kSelectionLengths = {256, 4096, 65536, 1048576};

Table selection_table(const Rows& rows) {
  Table table{"selection",
              "Ablation of selection: what depends on the token",
              "Mamba with the other parameters learned but the same for every token. % of answers, of copying each "
              "seed, of induction heads at a length the lowest.",
              {"selective", "copying"},
              {}};
  for (const int64_t length : kSelectionLengths) table.columns.push_back("induction, " + power(length));
  for (const SelectionRow& row : kSelection) {
    std::vector<std::string> cells = {row.label, each(rows.at(row.copying), last_answers)};
    for (const int64_t length : kSelectionLengths) cells.push_back(cell_at(rows.at(row.induction), length));
    table.rows.push_back(cells);
  }
  return table;
}

const std::vector<Found>& mqar_runs(const Rows& rows, const NamedRow& row, int64_t width) {
  return rows.at(text(row.row, "-", width));
}

Table mqar_table(const Rows& rows) {
  Table table{"mqar",
              "Multi-query associative recall: pairs against model width",
              "% of answers, and so of how many pairs the value is found.",
              {"mixer"},
              {}};
  for (const int64_t width : kWidths) table.columns.push_back(text("width ", width));
  for (const NamedRow& row : kMqar) {
    std::vector<std::string> cells = {row.label};
    for (const int64_t width : kWidths)
      cells.push_back(each(mqar_runs(rows, row, width), [](const TaskRecord& one) {
        if (one.result.tests.empty() || !one.result.tests.back().failure.empty()) return last_answers(one);
        const double pairs = one.result.tests.back().accuracy.token() * static_cast<double>(one.config.memory);
        return text(last_answers(one), " (", number(pairs), " of ", one.config.memory, ")");
      }));
    table.rows.push_back(cells);
  }
  return table;
}

// Settings in which a result differs from the list: it was made by another recipe or with other flags.
std::string differences(const Found& found) {
  TaskConfig wanted;
  try {
    wanted = found.run.config();
    wanted.settle();
  } catch (const Error&) {
    return "";  // a mixer that this program does not have: the result is another one's
  }
  TaskConfig had = found.record->config;
  const Json before = Json::parse(write_json(wanted.fields(), 0)), now = Json::parse(write_json(had.fields(), 0));
  std::string all;
  for (const auto& [key, value] : before.items())
    if (key != "minutes" && key != "cuda_graph" && now.at(key) != value)
      all += text(all.empty() ? "" : ", ", key, " ", now.at(key).dump(), " for ", value.dump());
  return all;
}

std::string markdown(const Table& table) {
  std::string lines = text("## ", table.title, "\n\n", table.remark, "\n\n");
  const auto line = [&](const std::vector<std::string>& cells) {
    for (const std::string& cell : cells) lines += "| " + cell + " ";
    lines += "|\n";
  };
  line(table.columns);
  line(std::vector<std::string>(table.columns.size(), "---"));
  for (const auto& row : table.rows) line(row);
  return lines + "\n";
}

LineChart induction_chart(const Rows& rows) {
  LineChart chart{"Induction heads, trained at one length: answers that are right", "tokens in the sequence", {}};
  const std::vector<int64_t> lengths = tested_lengths(rows);
  for (const NamedRow& row : kInduction) {
    LineChart::Series series{row.label, {}};
    for (const int64_t length : lengths)
      if (const double share = lowest(rows.at(row.row), length); share >= 0) series.points.emplace_back(length, share);
    if (!series.points.empty()) chart.series.push_back(series);
  }
  return chart;
}

LineChart mqar_chart(const Rows& rows) {
  LineChart chart{"Multi-query associative recall: answers that are right", "model width", {}};
  for (const NamedRow& row : kMqar) {
    LineChart::Series series{row.label, {}};
    for (const int64_t width : kWidths)
      if (const double share = last_share(mqar_runs(rows, row, width)); share >= 0)
        series.points.emplace_back(width, share);
    if (!series.points.empty()) chart.series.push_back(series);
  }
  return chart;
}

BarChart copying_chart(const Rows& rows) {
  BarChart chart{"Selective copying: answers that are right", {"published", "ssm.cpp"}, {}};
  for (const CopyingRow& row : kCopying)
    if (const double share = last_share(rows.at(row.row)); share >= 0)
      chart.groups.push_back({text(row.architecture, ", ", row.inner), {row.published / 100, share}});
  return chart;
}

BarChart selection_chart(const Rows& rows) {
  BarChart chart{"What depends on the token: answers that are right", {"selective copying", "induction, 2^12"}, {}};
  for (const SelectionRow& row : kSelection) {
    const double copying = last_share(rows.at(row.copying)), induction = lowest(rows.at(row.induction), 4096);
    if (copying >= 0 || induction >= 0) chart.groups.push_back({row.label, {copying, induction}});
  }
  return chart;
}

Json state_of(const Found& found) {
  Json one = {{"name", found.run.name}, {"state", found.state}};
  if (found.state == "failed") one["error"] = found.problem;
  if (!found.record) return one;
  one["steps"] = found.record->result.steps;
  one["ended"] = found.record->result.ended;
  one["train_seconds"] = found.record->result.train_seconds;
  one["parameters"] = found.record->result.parameters;
  if (const std::string other = differences(found); !other.empty()) one["made_with"] = other;
  return one;
}

}  // namespace

std::string write_task_tables(const Path& directory, const std::vector<TaskRun>& runs) {
  Rows rows;
  Json json = {{"tables", Json::array()}, {"runs", Json::array()}};
  std::string remarks;
  for (const TaskRun& run : runs) {
    const Found found = look(directory, run);
    json["runs"].push_back(state_of(found));
    if (found.state == "failed") remarks += text("- ", run.name, " failed: ", found.problem, "\n");
    if (const std::string other = found.record ? differences(found) : ""; !other.empty())
      remarks += text("- ", run.name, " was made with ", other, "\n");
    if (found.record && found.record->result.ended == "minutes")
      remarks += text("- ", run.name, " ran out of its minutes at step ", found.record->result.steps, " of ",
                      found.record->config.rate.steps, "\n");
    rows[run.row].push_back(found);
  }
  std::string lines;
  for (const Table& table : {copying_table(rows), induction_table(rows), selection_table(rows), mqar_table(rows)}) {
    lines += markdown(table);
    json["tables"].push_back({{"name", table.name},
                              {"title", table.title},
                              {"remark", table.remark},
                              {"columns", table.columns},
                              {"rows", table.rows}});
  }
  if (!remarks.empty()) lines += "## Remarks\n\n" + remarks;
  write_file(directory / "tables.md", lines);
  write_file(directory / "tables.json", json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  if (const LineChart chart = induction_chart(rows); !chart.series.empty())
    write_file(directory / "induction.svg", svg_of(chart));
  if (const LineChart chart = mqar_chart(rows); !chart.series.empty())
    write_file(directory / "mqar.svg", svg_of(chart));
  if (const BarChart chart = copying_chart(rows); !chart.groups.empty())
    write_file(directory / "copying.svg", svg_of(chart));
  if (const BarChart chart = selection_chart(rows); !chart.groups.empty())
    write_file(directory / "selection.svg", svg_of(chart));
  return lines;
}

}  // namespace ssm
