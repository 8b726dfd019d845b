// The order of system calls is what this file is about: see save().
#include "train/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/error.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStep = "step-", kUnfinished = ".tmp-", kLatest = "latest", kLog = "log.jsonl";

std::string reason() { return std::strerror(errno); }

bool is_there(const Path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// "step-120" -> 120; -1 for other names.
int64_t step_of(std::string_view name) {
  if (!name.starts_with(kStep)) return -1;
  name.remove_prefix(kStep.size());
  int64_t step = -1;
  const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), step);
  return problem == std::errc() && end == name.data() + name.size() && step >= 0 ? step : -1;
}

std::string name_of_step(int64_t step) { return std::string(kStep) + std::to_string(step); }

std::vector<std::string> names_in(const Path& directory) {
  std::vector<std::string> names;
  std::error_code problem;
  for (fs::directory_iterator it(directory, problem), end; !problem && it != end; it.increment(problem))
    names.push_back(it->path().filename().string());
  require(!problem, "cannot list ", directory.string(), ": ", problem.message());
  return names;
}

std::vector<int64_t> steps_in(const Path& directory) {  // ascending
  std::vector<int64_t> steps;
  for (const std::string& name : names_in(directory))
    if (const int64_t step = step_of(name); step >= 0) steps.push_back(step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

int64_t step_of_line(const std::string& line, const std::string& where) {
  int64_t step = -1;
  read_json({{.name = "step", .target = &step, .help = "the line's step", .required = true}}, line, where,
            UnknownKeys::are_skipped);
  return step;
}

}  // namespace

RunDirectory::RunDirectory(Path path) : path_(std::move(path)) {}

RunDirectory::RunDirectory(RunDirectory&& other) noexcept
    : path_(std::move(other.path_)), saved_step_(other.saved_step_), log_(std::exchange(other.log_, -1)) {}

RunDirectory::~RunDirectory() {
  if (log_ >= 0) close(log_);
}

Path RunDirectory::checkpoint() const { return path_ / name_of_step(saved_step_); }

void RunDirectory::lock() {
  const Path name = path_ / kLog;
  log_ = open(name.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  require(log_ >= 0, "cannot write ", name.string(), ": ", reason());
  // File systems without locks give other errors; there the user has to take care.
  require(flock(log_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK, path_.string(),
          ": another process is training in this directory; wait for it, or choose another --out");
}

RunDirectory RunDirectory::start(const Path& path) {
  check_new_run(path);
  std::error_code problem;
  fs::create_directories(path, problem);
  require(!problem, "cannot create directory ", path.string(), ": ", problem.message());
  RunDirectory run(path);
  run.lock();
  run.sweep();
  require(ftruncate(run.log_, 0) == 0, "cannot write ", (path / kLog).string(), ": ", reason());
  return run;
}

RunDirectory RunDirectory::resume(const Path& path) {
  newest_checkpoint(path);
  RunDirectory run(path);
  run.lock();
  // Read again: until the lock was taken another process may have been at work.
  run.saved_step_ = step_of(newest_checkpoint(path).filename().string());
  run.sweep();
  run.truncate_log();
  return run;
}

void RunDirectory::sweep() const {
  for (const std::string& name : names_in(path_)) {
    const bool ours = name.starts_with(kStep) || name.starts_with(kLatest) || name.starts_with(kLog);
    std::error_code ignored;  // what cannot be removed is in nobody's way
    if (ours && name.find(kUnfinished) != std::string::npos) fs::remove_all(path_ / name, ignored);
  }
  for (const int64_t step : steps_in(path_))
    if (step > saved_step_) discard(step);
}

// Cuts the log behind the line of the newest checkpoint. A line that a killed process left half-written is newer.
void RunDirectory::truncate_log() {
  const Path name = path_ / kLog;
  const std::string all = read_text(name);
  size_t keep = 0;
  for (size_t end; (end = all.find('\n', keep)) != std::string::npos; keep = end + 1)
    if (step_of_line(all.substr(keep, end - keep), name.string()) > saved_step_) break;
  require(ftruncate(log_, static_cast<off_t>(keep)) == 0, "cannot write ", name.string(), ": ", reason());
}

void RunDirectory::log(std::string_view line) {
  const std::string whole = std::string(line) + "\n";
  // In one call, so that a killed process leaves whole lines.
  ssize_t wrote;
  do wrote = write(log_, whole.data(), whole.size());
  while (wrote < 0 && errno == EINTR);
  require(wrote == static_cast<ssize_t>(whole.size()), "cannot write ", (path_ / kLog).string(), ": ",
          wrote < 0 ? reason() : "the disk is full");
}

void RunDirectory::save(int64_t step, int64_t keep, const std::function<void(const Path&)>& fill) {
  if (step == saved_step_) return;
  // Checkpoint, then `latest`, then removal; the log reaches the disk before the checkpoint that it must not lack.
  fsync(log_);
  write_directory(path_ / name_of_step(step), fill);
  write_file(path_ / kLatest, name_of_step(step) + "\n");
  saved_step_ = step;
  if (keep == 0) return;
  const std::vector<int64_t> steps = steps_in(path_);
  for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i) discard(steps[i]);
}

// Renamed first: what has a checkpoint's name is whole, also while it is being removed.
void RunDirectory::discard(int64_t step) const {
  const Path whole = path_ / name_of_step(step);
  const Path doomed = Path(whole) += std::string(kUnfinished) + std::to_string(getpid()) + ".old";
  std::error_code problem;
  fs::rename(whole, doomed, problem);
  require(!problem, "cannot remove ", whole.string(), ": ", problem.message());
  fs::remove_all(doomed, problem);
}

void check_new_run(const Path& path) {
  require(!path.empty(), "--out is empty; expected a directory for the run");
  require(!is_there(path / kLatest), path.string(), " already holds a run; go on with --resume ", path.string(),
          ", or choose another --out");
  Path existing = fs::absolute(path).lexically_normal();
  while (!is_there(existing) && existing.has_relative_path()) existing = existing.parent_path();
  std::error_code ignored;
  require(fs::is_directory(existing, ignored), "cannot create directory ", path.string(), ": ", existing.string(),
          " is not a directory");
  require(access(existing.c_str(), W_OK | X_OK) == 0, "cannot write into ", existing.string(), ": ", reason());
  if (!is_there(path)) return;
  // A process killed before it wrote `latest` may have left a step-0, which nobody will miss, but no later one.
  const std::vector<int64_t> steps = steps_in(path);
  require(steps.empty() || steps.back() == 0, path.string(), " holds checkpoints, but no file `latest`; write ",
          name_of_step(steps.empty() ? 0 : steps.back()), " into it and go on with --resume, or choose another --out");
}

Path newest_checkpoint(const Path& path) {
  require(is_there(path), path.string(), ": no such directory; --resume takes the --out of a run");
  require(is_there(path / kLatest), path.string(),
          " is no run: it has no file `latest`; --resume takes the --out of a run that has made a checkpoint, and "
          "--init starts a new run from a model");
  std::string name = read_text(path / kLatest);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  require(step_of(name) >= 0, (path / kLatest).string(), " does not name a checkpoint, expected step-N");
  require(is_there(path / name), (path / kLatest).string(), " names ", name,
          ", which is not there; write the name of a checkpoint that is into it");
  return path / name;
}

}  // namespace ssm
