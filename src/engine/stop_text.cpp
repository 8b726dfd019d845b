#include "engine/stop_text.h"

#include <algorithm>

#include "core/error.h"

namespace ssm {

StopText::StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) require(!stop.empty(), "a stop text is empty; every text would end at once");
}

std::string StopText::push(std::string_view bytes) {
  if (stopped_) return {};
  held_ += bytes;
  // Byte by byte the stop that is complete first wins; of those complete at the same byte, the longest.
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t here = at + stop.size();
    if (here > end || (here == end && at >= begin)) continue;
    begin = at;
    end = here;
  }
  stopped_ = end != std::string::npos;
  const size_t decided = stopped_ ? begin : held_.size() - undecided();
  std::string out = held_.substr(0, decided);
  held_.erase(0, stopped_ ? held_.size() : decided);
  return out;
}

// Bytes at the end of held_ that begin a stop text.
size_t StopText::undecided() const {
  size_t most = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > most; --length)
      if (held_.ends_with(std::string_view(stop).substr(0, length))) most = length;
  }
  return most;
}

std::string StopText::finish() {
  std::string out = std::move(held_);
  held_.clear();
  return out;
}

}  // namespace ssm
