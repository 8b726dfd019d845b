// A training run on disk: numbered checkpoints, the name of the newest whole one, and the log.
//
//   DIR/step-120/     a checkpoint; what is in it is train/checkpoint.h's business
//   DIR/latest        "step-120"
//   DIR/log.jsonl     one JSON object a step, each line written whole
//
// Whenever the process dies, `latest` names a checkpoint that is whole. A directory is filled beside its place and
// renamed into it, `latest` follows, and only then do older checkpoints go; the one `latest` names is never touched.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "core/files.h"

namespace ssm {

class RunDirectory {
 public:
  // Makes the directory and an empty log. Throws Error where check_new_run() does.
  static RunDirectory start(const Path& path);
  // Opens a run at its newest checkpoint: what is newer (a log's lines, a checkpoint that `latest` does not name yet,
  // unfinished files) is removed. Throws Error where newest_checkpoint() does.
  static RunDirectory resume(const Path& path);
  ~RunDirectory();
  RunDirectory(RunDirectory&& other) noexcept;
  RunDirectory& operator=(RunDirectory&&) = delete;

  const Path& path() const { return path_; }
  int64_t saved_step() const { return saved_step_; }  // of the newest checkpoint; -1: none yet
  Path checkpoint() const;                            // its directory

  void log(std::string_view line);  // without its line end
  // A new checkpoint, made by `fill` in the directory it is given; then all but the newest `keep` go (0: all stay).
  // Nothing happens if `step` is the newest already.
  void save(int64_t step, int64_t keep, const std::function<void(const Path& directory)>& fill);

 private:
  explicit RunDirectory(Path path);
  void lock();
  void sweep() const;
  void truncate_log();
  void discard(int64_t step) const;

  Path path_;
  int64_t saved_step_ = -1;
  int log_ = -1;  // descriptor of log.jsonl; its lock keeps a second process out
};

// Throws Error if a run cannot start at `path`: it holds one already, or cannot be made or written to. Makes nothing.
void check_new_run(const Path& path);
// The directory that `latest` names. Throws Error if there is no run at `path`. Changes nothing.
Path newest_checkpoint(const Path& path);

}  // namespace ssm
