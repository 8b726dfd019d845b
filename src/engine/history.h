// Which ids a sequence has had so far, each once, and how often it was written rather than read: what the penalties of
// the sampler work on. Costs 4 bytes an id of the vocabulary and 16 an id that came.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ssm {

struct SeenId {
  int64_t id = 0;
  int64_t written = 0;  // times; 0: it was only read
  bool operator==(const SeenId&) const = default;
};

class History {
 public:
  explicit History(int64_t vocab) : place_(static_cast<size_t>(vocab), kNowhere) {}

  void read(int64_t id) { entry(id); }
  void write(int64_t id) { ++entry(id).written; }
  std::span<const SeenId> seen() const { return seen_; }  // in the order in which they first came
  void assign(std::span<const SeenId> seen) {             // each id once
    for (const SeenId& one : seen_) place_[static_cast<size_t>(one.id)] = kNowhere;
    seen_.clear();
    for (const SeenId& one : seen) entry(one.id).written = one.written;
  }

 private:
  static constexpr int32_t kNowhere = -1;

  SeenId& entry(int64_t id) {
    int32_t& place = place_[static_cast<size_t>(id)];
    if (place == kNowhere) {
      place = static_cast<int32_t>(seen_.size());
      seen_.push_back({.id = id});
    }
    return seen_[static_cast<size_t>(place)];
  }

  std::vector<int32_t> place_;  // (vocab): index into seen_
  std::vector<SeenId> seen_;
};

}  // namespace ssm
