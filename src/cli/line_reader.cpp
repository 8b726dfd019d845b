#include "cli/line_reader.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "cli/terminal.h"
#include "core/error.h"

namespace ssm::cli {

LineReader::LineReader(const Path& path)
    : name_(path == "-" ? "standard input" : path.string()),
      descriptor_(path == "-" ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  require(descriptor_ >= 0, "cannot open ", name_, ": ", std::strerror(errno));
}

LineReader::~LineReader() { close(descriptor_); }

bool LineReader::wait(int milliseconds) const {
  pollfd input{.fd = descriptor_, .events = POLLIN, .revents = 0};
  return poll(&input, 1, milliseconds) > 0;
}

void LineReader::fill() {
  std::array<char, 1 << 16> piece;
  const ssize_t got = read(descriptor_, piece.data(), piece.size());
  if (got < 0 && errno == EINTR) return;
  require(got >= 0, "cannot read ", name_, ": ", std::strerror(errno));
  ended_ = got == 0;
  buffer_.append(piece.data(), static_cast<size_t>(got));
}

bool LineReader::ready() {
  for (;;) {
    if (ended_ || buffer_.find('\n', searched_) != std::string::npos) return true;
    searched_ = buffer_.size();
    require(searched_ <= kLongest, name_, " line ", line_ + 1, " has more than ", kLongest, " bytes");
    if (!wait(0)) return false;
    fill();
  }
}

std::optional<std::string> LineReader::next() {
  while (!ready()) {
    if (interrupted()) return std::nullopt;
    wait(100);
  }
  if (buffer_.empty() && ended_) return std::nullopt;
  const size_t end = std::min(buffer_.find('\n', searched_), buffer_.size());
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  searched_ = 0;
  if (!line.empty() && line.back() == '\r') line.pop_back();
  ++line_;
  return line;
}

}  // namespace ssm::cli
