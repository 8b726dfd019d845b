// `ssm generate --interactive`: a talk with a model. A turn is a line, read between --prefix and --suffix, and the
// answer to it. The state goes from turn to turn, so nothing is read twice; taking a turn back is putting an older copy
// of the state in place, which costs the same after any length of talk.
#include <algorithm>
#include <deque>
#include <map>
#include <sstream>

#include "cli/generate_parts.h"
#include "cli/line_editor.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "core/state.h"
#include "engine/generator.h"
#include "engine/state_file.h"

namespace ssm::cli {
namespace {

constexpr const char* kHelp =
    "  /undo [N]         take back the last turn, or the last N (also /load, /reset)\n"
    "  /fork NAME        begin a branch at this point; the talk goes on where it is\n"
    "  /switch [NAME]    go to a branch, keeping this one as it is; without NAME: list them\n"
    "  /save F           keep the state in a file, for /load and --state-in\n"
    "  /load F           go on from a state file\n"
    "  /reset            forget everything\n"
    "  /set NAME VALUE   change an option: temperature, top_k, top_p, min_p, repetition_penalty,\n"
    "                    frequency_penalty, presence_penalty, max_tokens; without words: show them\n"
    "  /seed N           draw other random numbers\n"
    "  /stats            tokens, speed, memory\n"
    "  /help, /quit      this text; leave, as does Ctrl-D. Ctrl-C ends an answer\n"
    "A line is read as it is, between --prefix and --suffix; // at its beginning stands for one /.\n";

// A line of the talk and what belongs to it.
class Talk {
 public:
  explicit Talk(const Generation& run)
      : run_(run),
        settings_(run.settings),
        options_(run.settings.options),
        pool_(run.model.lm().state_spec(), 1, run.model.options().device),
        batch_(run.model, run.threads, pool_),
        sequence_(run.model, pool_, pool_.acquire()),
        identity_(run.model) {}

  int run() {
    if (!settings_.state_in.empty()) sequence_.restore(read_state_file(settings_.state_in, run_.model, identity_));
    if (settings_.has_prompt || settings_.has_ids) {
      const PromptReading reading = read_prompt(run_, batch_, sequence_);
      say(text(reading.tokens, " prompt tokens in ", duration(reading.seconds)));
    }
    if (editor_.is_terminal()) say("a line is a turn; /help lists the commands, Ctrl-D leaves");
    for (auto line = editor_.next("> "); line && !leaving_; line = leaving_ ? std::nullopt : editor_.next("> ")) {
      try {
        handle(*line);
      } catch (const Error& problem) {
        std::fprintf(stderr, "error: %s\n", one_line(problem.what()).c_str());
        failed_ = true;
      }
    }
    if (!settings_.state_out.empty()) save(settings_.state_out);
    if (interrupted()) return kInterrupted;
    // A script learns that a line failed; who types has seen it.
    return failed_ && !editor_.is_terminal() ? kUserError : 0;
  }

 private:
  struct Branch {
    Snapshot now;               // of a branch that is not the one we are on
    std::deque<Snapshot> past;  // the moments before its last turns
  };

  void say(const std::string& what) const { note(what, settings_.quiet); }

  void handle(const std::string& line) {
    if (line.starts_with("//"))
      turn(line.substr(1));
    else if (line.starts_with("/"))
      command(line);
    else
      turn(line);
  }

  // Turns
  // --------------------------------------------------------------------------------------------------------------

  void feed(const std::function<bool()>& goes_on = nullptr) {
    Sequence* const alone = &sequence_;
    batch_.feed(std::span(&alone, 1), goes_on);
  }

  Snapshot now() {
    feed();  // the last written token at most
    return sequence_.snapshot();
  }

  // Before anything that changes the state.
  void remember() {
    if (settings_.undo == 0) return;
    std::deque<Snapshot>& past = branches_[branch_].past;
    past.push_back(now());
    if (static_cast<int64_t>(past.size()) > settings_.undo) past.pop_front();
  }

  void turn(const std::string& line) {
    const bool begins = sequence_.tokens() == 0;
    std::vector<int64_t> ids = encode_prompt(run_.tokenizer, settings_.prefix + line + settings_.suffix, begins);
    if (ids.empty() && begins) ids = ids_to_begin_with(run_);
    remember();
    const Snapshot before = settings_.undo > 0 ? Snapshot() : now();
    const auto reading = Clock::now();
    sequence_.read(ids);
    feed([] { return !interrupted(); });
    if (interrupted()) {  // as if the line had not been typed
      forget_interrupt();
      settings_.undo > 0 ? undo(1) : sequence_.restore(before);
      say("stopped while the line was read; it is taken back");
      return;
    }
    last_prompt_seconds_ = seconds_since(reading);
    answer(static_cast<int64_t>(ids.size()));
  }

  void answer(int64_t prompt_tokens) {
    WrittenText written(run_.tokenizer, settings_.stops, options_);
    const auto show = [&](const std::string& piece) {
      if (!settings_.json) print(piece);
    };
    Finish how = Finish::length;
    const auto start = Clock::now();
    batch_.add(
        sequence_, options_,
        [&](const WrittenToken& token) {
          show(written.add(token));
          return !written.stopped() && !interrupted();
        },
        [&](Finish end) { how = end; });
    while (batch_.step()) continue;
    show(written.finish());
    if (!written.text().empty() && written.text().back() != '\n') show("\n");
    last_seconds_ = seconds_since(start);
    last_tokens_ = static_cast<int64_t>(written.ids().size());
    if (settings_.json) print(json_line(written.json(finish_reason(how, written), prompt_tokens, last_seconds_)));
    forget_interrupt();  // it ended the answer and no more
    ++turns_;
  }

  // Commands
  // -----------------------------------------------------------------------------------------------------------

  void command(const std::string& line) {
    std::istringstream words(line);
    std::string name, argument, more;
    words >> name;
    std::getline(words >> std::ws, argument);
    while (!argument.empty() && argument.back() == ' ') argument.pop_back();
    const auto needs = [&](const char* what) { require(!argument.empty(), name, " needs ", what); };
    if (name == "/help") {
      std::fputs(kHelp, stderr);
    } else if (name == "/quit" || name == "/exit") {
      leaving_ = true;
    } else if (name == "/undo") {
      undo(argument.empty() ? 1 : number(name, argument, 1));
    } else if (name == "/fork") {
      needs("the name of a branch");
      fork(argument);
    } else if (name == "/switch") {
      argument.empty() ? list_branches() : switch_to(argument);
    } else if (name == "/save") {
      needs("the name of a file");
      save(argument);
    } else if (name == "/load") {
      needs("the name of a file");
      const Snapshot loaded = read_state_file(argument, run_.model, identity_);
      remember();
      sequence_.restore(loaded);
      say(text("at token ", sequence_.tokens()));
    } else if (name == "/reset") {
      remember();
      pool_.zero(sequence_.slot());
      sequence_.restore({.state = pool_.save(sequence_.slot())});
    } else if (name == "/set") {
      set(argument);
    } else if (name == "/seed") {
      needs("a number");
      options_.seed = static_cast<uint64_t>(number(name, argument, INT64_MIN));
    } else if (name == "/stats") {
      stats();
    } else {
      const std::string near = nearest(
          name, {"/help", "/quit", "/undo", "/fork", "/switch", "/save", "/load", "/reset", "/set", "/seed", "/stats"});
      throw Error("unknown command ", name, near.empty() ? "" : "; did you mean " + near + "?",
                  " (/help lists all; // begins a line with one /)");
    }
  }

  static int64_t number(const std::string& name, const std::string& word, int64_t least) {
    std::istringstream in(word);
    int64_t value = 0;
    require(in >> value && in.eof() && value >= least, name, " ", word, ": expected an integer",
            least > INT64_MIN ? text(" of at least ", least) : "");
    return value;
  }

  void undo(int64_t turns) {
    std::deque<Snapshot>& past = branches_[branch_].past;
    require(turns <= static_cast<int64_t>(past.size()), "cannot take back ", turns, " turns: ", past.size(),
            " are kept (--undo ", settings_.undo, ")");
    sequence_.restore(past[past.size() - static_cast<size_t>(turns)]);
    past.resize(past.size() - static_cast<size_t>(turns));
    say(text("at token ", sequence_.tokens()));
  }

  void fork(const std::string& name) {
    require(!branches_.contains(name), "there is a branch ", name, " already; /switch ", name, " goes to it");
    branches_[name].now = now();
    say(text("branch ", name, " begins here, at token ", sequence_.tokens(), "; /switch ", name, " goes to it"));
  }

  void switch_to(const std::string& name) {
    const auto found = branches_.find(name);
    if (found == branches_.end()) {
      std::string known;
      for (const auto& [other, branch] : branches_) known += (known.empty() ? "" : ", ") + other;
      throw Error("there is no branch ", name, ", only ", known);
    }
    if (name == branch_) return;
    branches_[branch_].now = now();
    sequence_.restore(found->second.now);
    found->second.now = {};
    branch_ = name;
    say(text("on branch ", branch_, ", at token ", sequence_.tokens()));
  }

  void list_branches() const {
    for (const auto& [name, branch] : branches_)
      std::fprintf(stderr, "%s %s, token %lld\n", name == branch_ ? "*" : " ", one_line(name).c_str(),
                   static_cast<long long>(name == branch_ ? sequence_.tokens() : branch.now.tokens));
  }

  void save(const std::string& file) {
    require_can_write(file);
    write_state_file(file, run_.model, identity_, now());
    say(text("kept token ", sequence_.tokens(), " in ", file));
  }

  Fields settable() {
    Fields fields = options_.sampler.fields();
    fields.push_back({"max_tokens", &options_.max_tokens, "tokens to write at most"});
    return fields;
  }

  void set(const std::string& argument) {
    std::istringstream words(argument);
    std::string name, value;
    words >> name >> value;
    if (name.empty()) {
      std::fprintf(stderr, "%s\n", write_json(settable(), 0).c_str());
      return;
    }
    std::replace(name.begin(), name.end(), '-', '_');
    const bool is_number = value.find_first_not_of("0123456789+-.eE") == std::string::npos;
    require(!value.empty() && is_number, "/set ", name, " needs a number");
    const GenerateOptions before = options_;
    try {
      read_json(settable(), Json{{name, Json::parse(value, nullptr, false)}}.dump(), "/set");
      options_.sampler.check();
      require(options_.max_tokens >= 0, "max_tokens is ", options_.max_tokens, ", expected 0 or more");
    } catch (const Error&) {
      options_ = before;
      throw;
    }
  }

  void stats() const {
    const int64_t state = bytes_of(run_.model.lm().state_spec(), sequence_.tokens());
    size_t copies = 0;
    for (const auto& [name, branch] : branches_) copies += branch.past.size() + (name == branch_ ? 0 : 1);
    const double rate = last_seconds_ > 0 ? static_cast<double>(last_tokens_) / last_seconds_ : 0;
    std::fprintf(stderr,
                 "turns    %lld\ntokens   %lld, %lld of them written\nanswer   %lld tokens, %s tokens/s; line read in "
                 "%s\nstate    %s, copied %zu times: %s\nbranch   %s of %zu\nseed     %lld\n",
                 static_cast<long long>(turns_), static_cast<long long>(sequence_.tokens()),
                 static_cast<long long>(sequence_.written()), static_cast<long long>(last_tokens_),
                 quantity(rate).c_str(), duration(last_prompt_seconds_).c_str(),
                 byte_count(static_cast<double>(state)).c_str(), copies,
                 byte_count(static_cast<double>(state) * static_cast<double>(copies)).c_str(),
                 one_line(branch_).c_str(), branches_.size(), static_cast<long long>(options_.seed));
  }

  const Generation& run_;
  const GenerateSettings& settings_;
  GenerateOptions options_;
  StatePool pool_;
  Batch batch_;
  Sequence sequence_;
  ModelIdentity identity_;
  LineEditor editor_;
  std::string branch_ = "main";
  std::map<std::string, Branch> branches_ = {{"main", {}}};
  bool leaving_ = false, failed_ = false;
  int64_t turns_ = 0, last_tokens_ = 0;
  double last_seconds_ = 0, last_prompt_seconds_ = 0;
};

}  // namespace

int generate_interactive(const Generation& run) { return Talk(run).run(); }

}  // namespace ssm::cli
