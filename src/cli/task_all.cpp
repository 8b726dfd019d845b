// Processes rather than threads: a run that dies takes nothing with it, and each has a GPU's stream of its own.
#include "cli/task_all.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <deque>
#include <thread>

#include "cli/json_line.h"
#include "cli/terminal.h"
#include "core/files.h"
#include "task/task_runs.h"
#include "task/task_tables.h"
#include "train/run_directory.h"

namespace ssm::cli {
namespace {

using Clock = std::chrono::steady_clock;

bool is_there(const Path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

std::string last_line(const Path& path) {
  std::string all = is_there(path) ? read_text(path) : "";
  while (!all.empty() && all.back() == '\n') all.pop_back();
  return all.substr(all.rfind('\n') + 1);
}

// The step of the last whole line of a run's log; 0: none yet.
int64_t step_of(const Path& log) {
  const int file = open(log.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  constexpr off_t kTail = 1024;  // a line has about 150 bytes
  const off_t size = lseek(file, 0, SEEK_END);
  std::string tail(static_cast<size_t>(std::min(size, kTail)), '\0');
  const ssize_t got = pread(file, tail.data(), tail.size(), std::max<off_t>(0, size - kTail));
  close(file);
  tail.resize(static_cast<size_t>(std::max<ssize_t>(0, got)));
  const size_t end = tail.rfind('\n');
  if (end == std::string::npos) return 0;
  const size_t before = end == 0 ? std::string::npos : tail.rfind('\n', end - 1);
  const Json line = Json::parse(tail.substr(before == std::string::npos ? 0 : before + 1, end), nullptr, false);
  return line.is_object() ? line.value("step", int64_t{0}) : 0;
}

// A run at work in a process of its own.
class Child {
 public:
  Child(const TaskRun& run, const Path& directory, const std::string& dtype, const std::vector<std::string>& common)
      : run_(run), directory_(directory) {
    std::vector<std::string> words = {"ssm", "task"};
    if (is_there(directory / "latest")) {
      words.insert(words.end(), {"--resume", directory.string()});
    } else {
      for (const std::string& word : run.words()) words.push_back(word);
      words.insert(words.end(), {"--out", directory.string(), "--dtype", dtype});
    }
    words.insert(words.end(), common.begin(), common.end());
    std::error_code problem;
    std::filesystem::create_directories(directory, problem);
    require(!problem, "cannot create directory ", directory.string(), ": ", problem.message());
    std::filesystem::remove(directory / "failure.txt", problem);
    begin_step_ = step_of(directory / "log.jsonl");
    start(words);
  }
  Child(Child&& other) noexcept = default;
  Child& operator=(Child&&) = default;

  const TaskRun& run() const { return run_; }
  void ask_to_stop() const { kill(id_, SIGTERM); }

  // Whether it is over; then status() says how.
  bool over() { return waitpid(id_, &status_, WNOHANG) == id_; }
  bool interrupted() const { return WIFEXITED(status_) && WEXITSTATUS(status_) == kInterrupted; }
  // "" where it has a result.
  std::string failure() const {
    if (WIFEXITED(status_) && WEXITSTATUS(status_) == 0) return "";
    if (WIFSIGNALED(status_)) return text("ended by signal ", WTERMSIG(status_), ": ", strsignal(WTERMSIG(status_)));
    const std::string said = last_line(directory_ / "stderr.txt");
    return said.starts_with("error: ") ? said.substr(7) : text("exit ", WEXITSTATUS(status_), ": ", said);
  }

  std::string progress() const {
    const int64_t step = step_of(directory_ / "log.jsonl"), steps = run_.config().rate.steps, made = step - begin_step_;
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    if (made <= 0) return text(run_.name, " begins");
    const double rate = static_cast<double>(made) / seconds;
    const std::string left = steps > step ? " ETA " + duration(static_cast<double>(steps - step) / rate)
                                          : std::string(steps > 0 ? " tests" : "");
    char speed[32];
    std::snprintf(speed, sizeof speed, "%.1f", rate);
    return text(run_.name, " step ", step, steps > 0 ? text("/", steps) : "", ", ", speed, " steps/s", left);
  }

 private:
  void start(std::vector<std::string> words) {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const Path said = directory_ / "stderr.txt";
    const int err = open(said.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    const pid_t parent = getpid();
    id_ = fork();
    require(id_ >= 0 && err >= 0 && null >= 0, "cannot start ", run_.name, ": ", std::strerror(errno));
    if (id_ == 0) {   // from here on only what is safe between fork and exec
      setpgid(0, 0);  // Ctrl-C reaches the parent alone, which asks once
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      if (getppid() != parent) _exit(kInterrupted);  // it died before
      dup2(null, STDIN_FILENO);
      dup2(null, STDOUT_FILENO);
      dup2(err, STDERR_FILENO);
      execv("/proc/self/exe", argv.data());
      _exit(127);
    }
    close(err);
    close(null);
  }

  TaskRun run_;
  Path directory_;
  pid_t id_ = -1;
  int status_ = 0;
  int64_t begin_step_ = 0;
  Clock::time_point begin_ = Clock::now();
};

class Runner {
 public:
  Runner(const AllTasks& asked, std::vector<TaskRun> all, std::deque<TaskRun> waiting, std::string dtype,
         std::vector<std::string> common, bool quiet)
      : asked_(asked),
        all_(std::move(all)),
        waiting_(std::move(waiting)),
        dtype_(std::move(dtype)),
        common_(std::move(common)),
        quiet_(quiet) {}

  // False when interrupted.
  bool run() {
    const size_t count = waiting_.size();
    Progress progress(quiet_);
    while (!waiting_.empty() || !working_.empty()) {
      if (interrupted() && !stopping_) {
        stopping_ = true;
        waiting_.clear();
        for (const Child& child : working_) child.ask_to_stop();
      }
      while (!waiting_.empty() && static_cast<int64_t>(working_.size()) < asked_.jobs) {
        working_.emplace_back(waiting_.front(), Path(asked_.out) / waiting_.front().name, dtype_, common_);
        waiting_.pop_front();
      }
      reap(progress);
      if (!working_.empty()) {
        std::string line = text(done_, "/", count, " runs");
        for (const Child& child : working_) line += " · " + child.progress();
        progress.show(line);
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    }
    progress.done();
    return !stopping_;
  }

 private:
  void reap(Progress& progress) {
    for (auto it = working_.begin(); it != working_.end();) {
      if (!it->over()) {
        ++it;
        continue;
      }
      const std::string name = it->run().name, failure = it->failure();
      if (it->interrupted()) {
        stopping_ = stopping_ || interrupted();
      } else {
        if (!failure.empty()) write_file(Path(asked_.out) / name / kFailure, failure + "\n");
        ++done_;
        progress.clear();
        note(failure.empty() ? name + " done" : text(name, " failed: ", failure), quiet_);
      }
      it = working_.erase(it);
      write_task_tables(asked_.out, all_);
    }
  }

  const AllTasks& asked_;
  const std::vector<TaskRun> all_;
  std::deque<TaskRun> waiting_;
  const std::string dtype_;  // of a new run
  const std::vector<std::string> common_;
  const bool quiet_;
  std::vector<Child> working_;
  size_t done_ = 0;
  bool stopping_ = false;
};

std::string listed(const std::vector<TaskRun>& runs, const std::string& out, bool json) {
  std::string lines;
  for (const TaskRun& run : runs) {
    const std::string command = run.command() + (out.empty() ? "" : " --out " + (Path(out) / run.name).string());
    lines += json ? json_line({{"name", run.name}, {"command", command}}) : text("# ", run.name, "\n", command, "\n");
  }
  return lines;
}

}  // namespace

int run_all_tasks(const AllTasks& asked, const Invocation& invocation, const std::string& given) {
  require_usage(asked.list || !asked.out.empty(), "ssm task --all needs --out DIR, where runs and tables go");
  require_range("--seeds", asked.seeds, 0, 1000);
  require_range("--jobs", asked.jobs, 1, 1024);
  Recipe recipe{};
  try {
    recipe = recipe_named(asked.recipe);
  } catch (const Error& problem) {
    throw UsageError("--", problem.what());
  }
  const std::vector<TaskRun> all = task_runs(recipe, asked.seeds, given);
  std::vector<TaskRun> chosen;
  std::copy_if(all.begin(), all.end(), std::back_inserter(chosen),
               [&](const TaskRun& run) { return matches(run.name, asked.only); });
  require_usage(!chosen.empty(), "--only \"", asked.only, "\": no run is called so; ssm task --all --list names them");
  if (asked.list) {
    print(listed(chosen, asked.out, invocation.common.json));
    return 0;
  }
  std::deque<TaskRun> waiting;
  for (const TaskRun& run : chosen)
    if (!is_there(Path(asked.out) / run.name / kResult)) waiting.push_back(run);
  const bool quiet = invocation.common.quiet;
  note(text(chosen.size(), " runs, ", chosen.size() - waiting.size(), " of them made before"), quiet);
  const CommonOptions& common = invocation.common;
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t threads = common.threads > 0 ? common.threads : std::max<int64_t>(1, cores / asked.jobs);
  std::vector<std::string> words = {"--quiet", "--device", common.device, "--threads", std::to_string(threads)};
  if (common.tf32) words.emplace_back("--tf32");
  std::error_code problem;
  std::filesystem::create_directories(asked.out, problem);
  require(!problem, "cannot create directory ", asked.out, ": ", problem.message());
  Runner runner(asked, all, std::move(waiting), common.dtype, words, quiet);
  const bool whole = runner.run();
  const std::string tables = write_task_tables(asked.out, all);
  print(common.json ? json_line(Json::parse(read_text(Path(asked.out) / "tables.json"))) : tables);
  if (!whole) note("interrupted; the same command line goes on", quiet);
  return whole ? 0 : kInterrupted;
}

}  // namespace ssm::cli
