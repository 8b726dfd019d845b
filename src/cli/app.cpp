// Flags are `--name value`, `--name=value`, and for booleans `--name` and `--no-name`; a flag that takes several values
// takes words until the next flag; `--` ends the flags.
#include "cli/app.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <sstream>

#include "cli/terminal.h"
#include "core/device.h"
#include "ops/linear/gemm.h"

namespace ssm::cli {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

bool is_boolean(const Field& field) { return std::holds_alternative<bool*>(field.target); }
bool takes_several(const Field& field) {
  return std::holds_alternative<std::vector<std::string>*>(field.target) ||
         std::holds_alternative<std::vector<int64_t>*>(field.target) ||
         std::holds_alternative<std::vector<double>*>(field.target);
}

template <class Number>
Number parse_number(const std::string& flag, const std::string& word, std::string_view expected) {
  Number value{};
  const char* const end = word.data() + word.size();
  const auto [stopped, problem] = std::from_chars(word.data(), end, value);
  bool good = problem == std::errc{} && stopped == end;
  if constexpr (std::is_floating_point_v<Number>) good = good && std::isfinite(value);
  require_usage(good, flag, " is \"", word, "\", expected ", expected);
  return value;
}

// Sets a field from the word after its flag.
void set_field(const Field& field, const std::string& flag, const std::string& word) {
  const auto integer = [&] {
    const std::string expected = field.word.empty() ? "an integer" : "an integer or " + field.word;
    return parse_number<int64_t>(flag, word, expected);
  };
  std::visit(
      Overloaded{
          [&](bool* to) {
            require_usage(word == "true" || word == "false", flag, " is \"", word, "\", expected true or false");
            *to = word == "true";
          },
          [&](int64_t* to) { *to = !field.word.empty() && word == field.word ? field.word_value : integer(); },
          [&](double* to) { *to = parse_number<double>(flag, word, "a number"); }, [&](std::string* to) { *to = word; },
          [&](std::vector<int64_t>* to) { to->push_back(integer()); },
          [&](std::vector<double>* to) { to->push_back(parse_number<double>(flag, word, "a number")); },
          [&](std::vector<std::string>* to) { to->push_back(word); },
          [&](const Field::Nested&) { throw UsageError(flag, " is an object; it can be set in a config file only"); }},
      field.target);
}

void empty_list(const Field& field) {
  std::visit(
      Overloaded{[](std::vector<int64_t>* list) { list->clear(); }, [](std::vector<double>* list) { list->clear(); },
                 [](std::vector<std::string>* list) { list->clear(); }, [](const auto&) {}},
      field.target);
}

// The words after the command's name, against its fields.
class Parser {
 public:
  Parser(Command& command, const Fields& fields, const std::vector<std::string>& words)
      : command_(command), fields_(fields), words_(words), places_(command.positional()) {}

  std::set<std::string> parse() {
    bool flags_ended = false;
    while (next_ < words_.size()) {
      const std::string& word = words_[next_++];
      if (!flags_ended && word == "--")
        flags_ended = true;
      else if (!flags_ended && looks_like_flag(word))
        flag(word);
      else
        place(word);
    }
    for (const Field& field : fields_) {
      const bool missing = field.required && !given_.contains(field.name);
      require_usage(!missing, "ssm ", command_.name(), " needs ", shown(field), ": ", field.help, "; see ssm ",
                    command_.name(), " --help");
    }
    return given_;
  }

 private:
  static bool looks_like_flag(const std::string& word) { return word.size() > 1 && word[0] == '-' && word != "-"; }

  const Field* find(std::string_view flag) const {
    for (const Field& field : fields_)
      if (flag_of(field.name) == flag) return &field;
    return nullptr;
  }

  std::string shown(const Field& field) const {
    const bool placed = std::find(places_.begin(), places_.end(), field.name) != places_.end();
    std::string upper = field.name;
    std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return std::toupper(c); });
    return placed ? upper : flag_of(field.name);
  }

  void mark(const Field& field, const std::string& flag) {
    const bool first = given_.insert(field.name).second;
    require_usage(first || takes_several(field), flag, " is given twice");
    if (first) empty_list(field);
  }

  void flag(const std::string& word) {
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const Field* field = find(name);
    bool negated = false;
    if (!field && name.starts_with("--no-")) {
      field = find("--" + name.substr(5));
      negated = field && is_boolean(*field);
      if (!negated) field = nullptr;
    }
    if (!field) unknown(name);
    mark(*field, name);
    if (equals != std::string::npos) {
      require_usage(!negated, name, " takes no value");
      set_field(*field, name, word.substr(equals + 1));
    } else if (is_boolean(*field)) {
      set_field(*field, name, negated ? "false" : "true");
    } else {
      const size_t first = next_;
      while (next_ < words_.size() && (takes_several(*field) || next_ == first) && !is_known_flag(words_[next_]) &&
             (next_ == first || !is_misspelt_flag(words_[next_])))
        set_field(*field, name, words_[next_++]);
      require_usage(next_ > first, name, " needs a value (", field->help, ")");
    }
  }

  // A value may begin with a dash (--seed -1, --prompt "- one"); one that is a flag of this command is a forgotten
  // value.
  bool is_known_flag(const std::string& word) const {
    return word == "--" || (word.starts_with("--") && find(word.substr(0, word.find('='))));
  }

  // After the first of several values a word like --lerning-rate is a misspelt flag, not another value.
  static bool is_misspelt_flag(const std::string& word) {
    return word.starts_with("--") && word.size() > 2 && std::isalpha(static_cast<unsigned char>(word[2]));
  }

  void place(const std::string& word) {
    require_usage(placed_ < places_.size(), "unexpected argument \"", word, "\" for ssm ", command_.name(),
                  "; see ssm ", command_.name(), " --help");
    const Field* field = find(flag_of(places_[placed_]));
    DCHECK(field);
    mark(*field, shown(*field));
    set_field(*field, shown(*field), word);
    if (!takes_several(*field)) ++placed_;
  }

  [[noreturn]] void unknown(const std::string& name) const {
    std::vector<std::string> known;
    for (const Field& field : fields_) known.push_back(flag_of(field.name));
    known.push_back("--help");
    const std::string near = nearest(name, known);
    throw UsageError("unknown flag ", name, near.empty() ? "" : "; did you mean " + near + "?", " (ssm ",
                     command_.name(), " --help lists all)");
  }

  Command& command_;
  const Fields& fields_;
  const std::vector<std::string>& words_;
  const std::vector<std::string> places_;
  size_t next_ = 0, placed_ = 0;
  std::set<std::string> given_;
};

// Help ----------------------------------------------------------------------------------------------------------------

std::string kind_of_value(const Field& field) {
  return std::visit(
      Overloaded{[](bool*) { return ""; }, [](int64_t*) { return " N"; }, [](double*) { return " X"; },
                 [](std::string*) { return " TEXT"; }, [](std::vector<int64_t>*) { return " N..."; },
                 [](std::vector<double>*) { return " X..."; }, [](std::vector<std::string>*) { return " TEXT..."; },
                 [](const Field::Nested&) { return ""; }},
      field.target);
}

// " (default 256)", or nothing where the default says nothing.
std::string default_of(const Field& field) {
  std::ostringstream out;
  std::visit(Overloaded{[&](bool* value) { out << (*value ? "yes" : ""); },
                        [&](int64_t* value) {
                          if (!field.word.empty() && *value == field.word_value)
                            out << field.word;
                          else
                            out << *value;
                        },
                        [&](double* value) { out << *value; }, [&](std::string* value) { out << one_line(*value); },
                        [](const auto&) {}},
             field.target);
  return field.required ? " (required)" : out.str().empty() ? "" : " (default " + out.str() + ")";
}

void write_options(std::ostream& out, const Fields& fields) {
  constexpr size_t kColumn = 28;
  for (const Field& field : fields) {
    std::string left = "  " + flag_of(field.name) + kind_of_value(field);
    if (left.size() + 2 > kColumn)
      out << left << "\n" << std::string(kColumn, ' ');
    else
      out << left << std::string(kColumn - left.size(), ' ');
    out << field.help << default_of(field) << "\n";
  }
}

std::string help_of_program(const Commands& commands) {
  std::ostringstream out;
  out << "ssm: selective state space models (Mamba), trained and run from the command line\n\n"
         "Usage: ssm COMMAND [options]\n\nCommands:\n";
  for (const auto& command : commands)
    out << "  " << command->name() << std::string(12 - command->name().size(), ' ') << command->summary() << "\n";
  out << "\nssm COMMAND --help shows a command's options and an example; ssm --version the version.\n"
         "Exit status: 0 done, 1 an error of the input, 2 of the command line, 130 interrupted.\n";
  return out.str();
}

}  // namespace

std::string help_of(Command& command) {
  std::ostringstream out;
  out << "ssm " << command.name() << ": " << command.summary() << "\n\nUsage: ssm " << command.name();
  for (std::string place : command.positional()) {
    std::transform(place.begin(), place.end(), place.begin(), [](unsigned char c) { return std::toupper(c); });
    out << " " << place;
  }
  out << " [options]\nExample: " << command.example() << "\n\nOptions:\n";
  write_options(out, command.fields());
  out << "\nOptions of every command:\n";
  CommonOptions common;
  write_options(out, common.fields());
  return out.str();
}

int run_app(const Commands& commands, const std::vector<std::string>& words) {
  require_usage(!words.empty(), "no command given; ssm --help lists them");
  const auto asks_help = [](const std::string& word) { return word == "--help" || word == "-h"; };
  if (asks_help(words[0])) {
    print(help_of_program(commands));
    return 0;
  }
  if (words[0] == "--version") {
    print("ssm " SSM_VERSION "\n");
    return 0;
  }
  const auto found =
      std::find_if(commands.begin(), commands.end(), [&](const auto& c) { return c->name() == words[0]; });
  if (found == commands.end()) {
    std::vector<std::string> known;
    for (const auto& command : commands) known.push_back(command->name());
    const std::string near = nearest(words[0], known);
    throw UsageError("unknown command \"", words[0], "\"", near.empty() ? "" : "; did you mean " + near + "?",
                     " (ssm --help lists all)");
  }
  Command& command = **found;
  const std::vector<std::string> rest(words.begin() + 1, words.end());
  const auto flags_end = std::find(rest.begin(), rest.end(), "--");
  if (std::any_of(rest.begin(), flags_end, asks_help)) {
    print(help_of(command));
    return 0;
  }
  Invocation invocation;
  Fields fields = command.fields();
  for (Field& field : invocation.common.fields()) fields.push_back(std::move(field));
  invocation.given = Parser(command, fields, rest).parse();
  require_range("--threads", invocation.common.threads, 0, 1024);
  invocation.common.dtype_kind();
  const Device device = invocation.common.device_kind();
  require_usage(!invocation.common.tf32 || device.is_cuda(), "--tf32 is for a GPU, --device is ", name_of(device));
  if constexpr (kHasCuda) cuda::allow_tf32(invocation.common.tf32);
  return command.run(invocation);
}

}  // namespace ssm::cli
