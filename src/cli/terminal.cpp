#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "cli/command.h"
#include "tokenizers/utf8_stream.h"

namespace ssm::cli {
namespace {

volatile std::sig_atomic_t interrupts = 0, terminated = 0;

// Only what is safe in a signal handler.
void on_interrupt(int signal) {
  if (signal == SIGTERM) terminated = 1;
  interrupts = interrupts + 1;
  if (interrupts > 1) _exit(kInterrupted);
}

void handle_interrupts(int flags) {
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = on_interrupt;
  action.sa_flags = flags;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

template <class... Values>
std::string formatted(const char* pattern, Values... values) {
  std::array<char, 64> buffer;
  std::snprintf(buffer.data(), buffer.size(), pattern, values...);
  return buffer.data();
}

size_t terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// Bytes of the UTF-8 character that `text` begins with; 0 if it begins with none.
size_t character_length(std::string_view text) {
  for (size_t length = 1; length <= std::min<size_t>(4, text.size()); ++length)
    if (Utf8Stream().push(text.substr(0, length)) == text.substr(0, length)) return length;
  return 0;
}

// The beginning of a line that fits into `columns`, whole characters, each taken to be one column wide.
std::string_view fitting(std::string_view line, size_t columns) {
  size_t bytes = 0;
  for (; bytes < line.size(); ++bytes) {
    const bool begins_character = (static_cast<unsigned char>(line[bytes]) & 0xC0) != 0x80;
    if (begins_character && columns-- == 0) break;
  }
  return line.substr(0, bytes);
}

// Characters that would move the cursor or break the line: C0 and C1 controls, line and paragraph separators.
bool is_control(std::string_view character) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0) < 0x20 || byte(0) == 0x7f;
  if (character.size() == 2) return byte(0) == 0xC2 && byte(1) < 0xA0;
  return character == "\u2028" || character == "\u2029";
}

}  // namespace

void catch_signals() {
  handle_interrupts(SA_RESTART);  // no call of ours need be prepared to be interrupted
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
  sigaction(SIGXFSZ, &action, nullptr);  // a file past `ulimit -f`: an error like a full disk
}

bool interrupted() { return interrupts > 0; }

bool forget_interrupt() {
  if (terminated == 0) interrupts = 0;
  return terminated == 0;
}

InterruptsEndWaiting::InterruptsEndWaiting() { handle_interrupts(0); }
InterruptsEndWaiting::~InterruptsEndWaiting() { handle_interrupts(SA_RESTART); }

void stop_if_interrupted() {
  if (interrupted()) throw Interrupted();
}

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t wrote = write(STDOUT_FILENO, text.data(), text.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0 && errno == EPIPE) throw BrokenPipe();
    require(wrote > 0, "cannot write standard output: ", std::strerror(errno));
    text.remove_prefix(static_cast<size_t>(wrote));
  }
}

bool stdout_is_terminal() { return isatty(STDOUT_FILENO) == 1; }

void note(std::string_view text, bool quiet) {
  if (!quiet) std::fprintf(stderr, "note: %s\n", one_line(text).c_str());
}

std::string one_line(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const size_t length = character_length(text);
    const std::string_view next = text.substr(0, std::max<size_t>(1, length));
    if (length > 0 && !is_control(next))
      line += next;
    else if (next == "\n")
      line += "\\n";
    else
      for (const char c : next) line += formatted("\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    text.remove_prefix(next.size());
  }
  return line;
}

Progress::Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (quiet_) return;
  if (terminal_ && width_ > 0) std::fputc('\n', stderr);
  if (!terminal_ && !last_.empty()) std::fprintf(stderr, "%s\n", last_.c_str());
}

void Progress::show(std::string_view line) {
  if (quiet_) return;
  if (terminal_) {
    // A line that wraps could not be replaced.
    const std::string_view fits = fitting(line, terminal_columns() - 1);
    std::fprintf(stderr, "\r%.*s\x1b[K", static_cast<int>(fits.size()), fits.data());
    std::fflush(stderr);
    width_ = fits.size();
    return;
  }
  constexpr std::chrono::seconds kBetweenLines(10);
  const auto now = std::chrono::steady_clock::now();
  last_ = line;
  if (printed_ == std::chrono::steady_clock::time_point{}) printed_ = now;  // the first line waits its turn too
  if (now - printed_ < kBetweenLines) return;
  std::fprintf(stderr, "%s\n", last_.c_str());
  last_.clear();
  printed_ = now;
}

void Progress::clear() {
  if (quiet_ || !terminal_ || width_ == 0) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  width_ = 0;
}

void Progress::done() {
  clear();
  last_.clear();
}

std::string duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 10) return formatted("%.1f s", seconds);
  const auto whole = static_cast<long long>(std::llround(seconds));
  if (whole < 60) return formatted("%lld s", whole);
  if (whole < 3600) return formatted("%lld m %02lld s", whole / 60, whole % 60);
  return formatted("%lld h %02lld m", whole / 3600, whole % 3600 / 60);
}

std::string quantity(double value) {
  constexpr std::array<const char*, 5> kUnits = {"", " k", " M", " G", " T"};
  size_t unit = 0;
  // 999.95 and more would print as 1000.0.
  for (; std::fabs(value) >= 999.95 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return formatted(unit == 0 && value == std::floor(value) ? "%.0f%s" : "%.1f%s", value, kUnits[unit]);
}

std::string byte_count(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {" B", " KiB", " MiB", " GiB", " TiB"};
  size_t unit = 0;
  for (; bytes >= 1023.95 && unit + 1 < kUnits.size(); ++unit) bytes /= 1024;
  return formatted(unit == 0 ? "%.0f%s" : "%.1f%s", bytes, kUnits[unit]);
}

}  // namespace ssm::cli
