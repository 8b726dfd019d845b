// The order of the rooms under src/, kept by reading `#include "..."` lines: includes point downward only.
// Tests and benches may include anything; <...> is for other people's headers and is not looked at.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/files.h"

namespace ssm {
namespace {

using Rooms = std::set<std::string, std::less<>>;

Rooms operator+(Rooms left, const Rooms& right) {
  left.insert(right.begin(), right.end());
  return left;
}

// The rooms each room may include. "" is src/ itself: ssm.h, the library's door.
const std::map<std::string, Rooms, std::less<>>& allowed_rooms() {
  static const auto* table = [] {
    const Rooms core = {"core"}, ops = core + Rooms{"ops"};
    const Rooms mixers = ops + Rooms{"mixers", "lti"};              // the matrices that they start from
    const Rooms beside = {"formats", "tokenizers", "data", "lti"};  // lean on core alone
    const Rooms models = mixers + Rooms{"models"} + beside;
    const Rooms library = models + Rooms{"quant", "train", "eval", "engine", "task"};
    auto* rooms = new std::map<std::string, Rooms, std::less<>>{
        {"core", core}, {"ops", ops}, {"mixers", mixers}, {"models", models}, {"", library + Rooms{""}}};
    for (const std::string& room : beside) (*rooms)[room] = core + Rooms{room};
    for (const std::string room : {"quant", "train", "eval", "engine"}) (*rooms)[room] = models + Rooms{room};
    (*rooms)["task"] = models + Rooms{"train", "task"};
    (*rooms)["serve"] = library + Rooms{"", "serve"};
    (*rooms)["cli"] = library + Rooms{"", "serve", "cli", "bench"};  // `ssm serve` and `ssm bench` are commands
    (*rooms)["bench"] = library;                                     // the harness, beside src/
    return rooms;
  }();
  return *table;
}

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view end) { return name.ends_with(end); });
}

// "ops/ssd/ssd.h" -> {"ops", "ssd"}; missing parts are "".
std::pair<std::string, std::string> room_and_folder(std::string_view path) {
  const size_t first = path.find('/');
  if (first == std::string_view::npos) return {};
  const size_t second = path.find('/', first + 1);
  return {std::string(path.substr(0, first)),
          second == std::string_view::npos ? "" : std::string(path.substr(first + 1, second - first - 1))};
}

// Why `file` may not include `included` (both from src/), or "" if it may.
std::string broken_rule(std::string_view file, std::string_view included) {
  if (ends_with_any(file, {"_test.cpp", "_bench.cpp", "_test.cu", "_bench.cu"})) return "";
  const auto [room, folder] = room_and_folder(file);
  const auto [other_room, other_folder] = room_and_folder(included);
  if (!allowed_rooms().contains(room)) return text("src/", room, "/ has no place in the order of rooms");
  if (!allowed_rooms().contains(other_room))
    return text("\"", included, "\" is in no room: own headers are named from src/, others are included with <>");
  if (!allowed_rooms().at(room).contains(other_room)) {
    if (other_room.empty()) return text("only programs come through the library's door");
    return text(room.empty() ? "the library's door" : room, " may not include ", other_room);
  }
  if (!ends_with_any(included, {".h", ".cuh"})) return "only headers are included";
  const bool same_folder = room == other_room && folder == other_folder;
  if (other_room == "ops" && !other_folder.empty() && !same_folder && ends_with_any(included, {"-inl.h", ".cuh"}))
    return text("\"", included, "\" is private to its op");
  return "";
}

// The broken rules of one file, each "src/FILE:LINE: WHY".
std::vector<std::string> broken_rules(std::string_view file, const std::string& contents) {
  std::vector<std::string> broken;
  std::istringstream lines(contents);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::string_view rest = line;
    const auto skip = [&](std::string_view word) {
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t"), rest.size()));
      if (!rest.starts_with(word)) return false;
      rest.remove_prefix(word.size());
      return true;
    };
    if (!skip("#") || !skip("include") || !skip("\"")) continue;
    const std::string why = broken_rule(file, rest.substr(0, rest.find('"')));
    if (!why.empty()) broken.push_back(text("src/", file, ":", number, ": ", why));
  }
  return broken;
}

TEST(Layering, IncludesPointDownward) {
  const Path source = Path(SSM_SOURCE_ROOT) / "src";
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(source)) {
    const Path& path = entry.path();
    if (!entry.is_regular_file() || !ends_with_any(path.native(), {".h", ".cpp", ".cu", ".cuh"})) continue;
    ++files;
    for (const std::string& broken : broken_rules(path.lexically_relative(source).native(), read_text(path)))
      ADD_FAILURE() << broken;
  }
  EXPECT_GT(files, 20) << "the sources were not found in " << source;
}

TEST(Layering, ForbiddenIncludesAreFound) {
  const auto verdict = [](std::string_view file, const std::string& line) {
    const std::vector<std::string> broken = broken_rules(file, "#pragma once\n" + line + "\n");
    return broken.empty() ? std::string("allowed") : broken.at(0);
  };
  EXPECT_EQ(verdict("ops/ssd/ssd.cpp", "#include \"mixers/mixer.h\""),
            "src/ops/ssd/ssd.cpp:2: ops may not include mixers");
  EXPECT_EQ(verdict("core/tape.cpp", "  #  include \"ops/linear/linear.h\"  // why"),
            "src/core/tape.cpp:2: core may not include ops");
  EXPECT_EQ(verdict("data/loader.h", "#include \"formats/npy.h\""),
            "src/data/loader.h:2: data may not include formats");
  EXPECT_EQ(verdict("train/trainer.cpp", "#include \"engine/sampler.h\""),
            "src/train/trainer.cpp:2: train may not include engine");
  EXPECT_EQ(verdict("serve/http.cpp", "#include \"cli/command.h\""), "src/serve/http.cpp:2: serve may not include cli");
  EXPECT_EQ(verdict("ssm.cpp", "#include \"cli/command.h\""), "src/ssm.cpp:2: the library's door may not include cli");
  EXPECT_EQ(verdict("eval/loss.cpp", "#include \"ssm.h\""),
            "src/eval/loss.cpp:2: only programs come through the library's door");
  EXPECT_EQ(verdict("ops/ssd/ssd.cpp", "#include \"ops/linear/pack-inl.h\""),
            "src/ops/ssd/ssd.cpp:2: \"ops/linear/pack-inl.h\" is private to its op");
  EXPECT_EQ(verdict("cli/train.cpp", "#include \"train/trainer.cpp\""),
            "src/cli/train.cpp:2: only headers are included");
  EXPECT_EQ(verdict("cli/train.cpp", "#include \"CLI/CLI.hpp\""),
            "src/cli/train.cpp:2: \"CLI/CLI.hpp\" is in no room: own headers are named from src/, others are included "
            "with <>");
  EXPECT_EQ(verdict("misc/things.h", "#include \"core/tensor.h\""),
            "src/misc/things.h:2: src/misc/ has no place in the order of rooms");

  EXPECT_EQ(verdict("ops/ssd/ssd.cpp", "#include \"ops/linear/gemm.h\""), "allowed");
  EXPECT_EQ(verdict("ops/ssd/ssd_cpu.cpp", "#include \"ops/simd_math-inl.h\""), "allowed");
  EXPECT_EQ(verdict("models/block.cpp", "#include \"formats/safetensors.h\""), "allowed");
  EXPECT_EQ(verdict("cli/serve.cpp", "#include \"serve/http.h\""), "allowed");
  EXPECT_EQ(verdict("cli/main.cpp", "#include \"ssm.h\""), "allowed");
  EXPECT_EQ(verdict("cli/bench.cpp", "#include \"bench/harness.h\""), "allowed");
  EXPECT_EQ(verdict("ops/ssd/ssd_test.cpp", "#include \"tests/op_check.h\""), "allowed");
  EXPECT_EQ(verdict("ops/ssd/ssd.cpp", "// #include \"mixers/mixer.h\""), "allowed");
}

// Two classes of one name in namespace ssm are one to the linker, which keeps either's functions for both: whatever a
// header declares has its name alone. (What a .cpp declares stands in an anonymous namespace.)
TEST(Layering, EveryClassOfAHeaderHasItsNameAlone) {
  const Path source = Path(SSM_SOURCE_ROOT) / "src";
  std::map<std::string, std::set<std::string>> headers;  // by class
  for (const auto& entry : std::filesystem::recursive_directory_iterator(source)) {
    const Path& path = entry.path();
    if (!entry.is_regular_file() || !ends_with_any(path.native(), {".h", ".cuh"})) continue;
    std::istringstream lines(read_text(path));
    std::string line, word, name;
    bool anonymous = false;  // within a namespace without a name: the file's own
    while (std::getline(lines, line)) {
      if (line == "namespace {") anonymous = true;
      if (line == "}  // namespace") anonymous = false;
      std::istringstream words(line);
      // A definition or a declaration that stands at the line's start: members of classes are indented.
      if (anonymous || line.starts_with(' ') || !(words >> word >> name) || (word != "class" && word != "struct"))
        continue;
      if (name.ends_with(';') || name.find_first_of("<(:") != std::string::npos) continue;
      headers[name].insert(path.lexically_relative(source).native());
    }
  }
  EXPECT_GT(headers.size(), 50u) << "the sources were not found in " << source;
  for (const auto& [name, files] : headers)
    EXPECT_EQ(files.size(), 1u) << name << " is declared in " << *files.begin() << " and in " << *files.rbegin();
}

}  // namespace
}  // namespace ssm
