// How commands talk to people and scripts: results on stdout, a progress line that redraws only on a terminal, notes on
// stderr, Ctrl-C.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

namespace ssm::cli {

// SIGINT and SIGTERM set a flag; a second one ends the program at once. A closed pipe becomes a failed write. Call
// once, from main.
void catch_signals();
bool interrupted();
// For commands that go on after Ctrl-C. A SIGTERM is not forgotten: false then.
bool forget_interrupt();

// While this lives an interrupt ends a system call that waits for input, which goes on otherwise.
class InterruptsEndWaiting {
 public:
  InterruptsEndWaiting();
  ~InterruptsEndWaiting();
  InterruptsEndWaiting(const InterruptsEndWaiting&) = delete;
  InterruptsEndWaiting& operator=(const InterruptsEndWaiting&) = delete;
};

// For commands with nothing to save: thrown where they stop, becomes the exit code in main.
struct Interrupted {};
void stop_if_interrupted();  // throws Interrupted

// A result: written to stdout before this returns. Throws Error when it cannot be (a full disk), BrokenPipe when nobody
// reads any more.
struct BrokenPipe {};
void print(std::string_view text);
bool stdout_is_terminal();

// "note: ..." on stderr unless quiet.
void note(std::string_view text, bool quiet);

// Text of any origin made safe for one line of a terminal: control characters and what is not UTF-8 become \n, \x1b
// and the like.
std::string one_line(std::string_view text);

// A line on stderr that replaces itself on a terminal. Elsewhere a line every ten seconds and at the end, so that logs
// stay short. Silent when quiet.
class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void show(std::string_view line);
  void clear();  // so that other output can be printed
  void done();   // the last line is of no more use: the result says it

 private:
  bool quiet_, terminal_;
  size_t width_ = 0;  // of the line on the terminal
  std::string last_;  // shown but not printed yet, when there is no terminal
  std::chrono::steady_clock::time_point printed_{};
};

// "3 m 20 s", "12.4 k", "1.2 GiB".
std::string duration(double seconds);
std::string quantity(double value);
std::string byte_count(double bytes);

}  // namespace ssm::cli
