// Lines of a file or of standard input as they come, for commands that have other things to do meanwhile.
#pragma once

#include <optional>
#include <string>

#include "core/files.h"

namespace ssm::cli {

class LineReader {
 public:
  explicit LineReader(const Path& path);  // "-": standard input
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // Whether next() would return at once: with a line, or because the input has ended.
  bool ready();
  // Waits for a line, without its end ("\n" or "\r\n"). None when the input has ended or Ctrl-C was pressed. Throws
  // Error when it cannot be read, or on a line of more than kLongest bytes.
  std::optional<std::string> next();

  const std::string& name() const { return name_; }
  int64_t line() const { return line_; }  // of the last one, from 1

  static constexpr size_t kLongest = size_t{256} << 20;

 private:
  bool wait(int milliseconds) const;
  void fill();  // reads once
  std::string name_, buffer_;
  size_t searched_ = 0;  // of buffer_, without finding a line's end
  int descriptor_;
  bool ended_ = false;
  int64_t line_ = 0;
};

}  // namespace ssm::cli
