// A command of the program: `ssm NAME [options]`. One file a command, one line in main.cpp's table. Its options are
// fields of the command's own struct (core/config.h): flags, help and --json names come from that one list.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/error.h"

namespace ssm::cli {

// A command line that cannot be meant: the program ends with kUsage instead of kUserError.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Throws UsageError made of `parts` unless `holds`.
template <class... Parts>
void require_usage(bool holds, const Parts&... parts) {
  if (!holds) [[unlikely]]
    throw UsageError(parts...);
}

std::string flag_of(std::string_view field);  // top_k -> --top-k

// UsageError unless low <= value <= high; `flag` with its dashes.
void require_range(std::string_view flag, int64_t value, int64_t low, int64_t high = INT64_MAX);
void require_range(std::string_view flag, double value, double low, double high);

// What every command takes.
struct CommonOptions {
  std::string device = "auto", dtype = "auto";
  int64_t threads = 0;  // 0: one a core
  int64_t seed = 0;
  bool tf32 = false, json = false, quiet = false;

  Fields fields();
  // Throw UsageError with the choices; Error when this program or machine has no such device.
  Device device_kind() const;
  std::optional<DType> dtype_kind() const;  // none: auto
};

struct Invocation {
  CommonOptions common;
  std::set<std::string> given;  // names of the fields the user set
  bool has(std::string_view field) const { return given.contains(std::string(field)); }
};

class Command {
 public:
  virtual ~Command() = default;
  virtual std::string name() const = 0;
  virtual std::string summary() const = 0;  // one line
  virtual std::string example() const = 0;  // one command line that works
  virtual Fields fields() = 0;
  virtual std::vector<std::string> positional() const { return {}; }  // fields given without their flag, in order
  virtual int run(const Invocation& invocation) = 0;                  // the exit code; throws Error for exit 1
};

// Exit codes besides 0. A reader that closes our standard output early gives what the shell reports for SIGPIPE.
inline constexpr int kUserError = 1, kUsage = 2, kInterrupted = 130, kBrokenPipe = 141;

std::unique_ptr<Command> make_train();
std::unique_ptr<Command> make_generate();
std::unique_ptr<Command> make_evaluate();
std::unique_ptr<Command> make_logits();
std::unique_ptr<Command> make_gradients();
std::unique_ptr<Command> make_tokenize();
std::unique_ptr<Command> make_info();
std::unique_ptr<Command> make_convert();
std::unique_ptr<Command> make_bench();
std::unique_ptr<Command> make_task();
std::unique_ptr<Command> make_lti();
std::unique_ptr<Command> make_hippo();

}  // namespace ssm::cli
