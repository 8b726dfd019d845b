#include "engine/stop_text.h"

#include <algorithm>

#include "core/error.h"

namespace ssm {

StopText::StopText(const std::vector<std::string>& stops) {
  std::vector<std::pair<uint32_t, char>> parents = {{0, '\0'}};  // of each node, and the byte that leads to it
  for (const std::string& stop : stops) {
    require(!stop.empty(), "a stop text is empty; every text would end at once");
    uint32_t node = 0;
    for (const char byte : stop) {
      const auto [found, is_new] = edges_.try_emplace(edge(node, byte), static_cast<uint32_t>(nodes_.size()));
      if (is_new) {
        require(nodes_.size() < UINT32_MAX, "the stop texts have more than 4 GB together");
        nodes_.push_back({.depth = nodes_[node].depth + 1});
        parents.emplace_back(node, byte);
      }
      node = found->second;
    }
    nodes_[node].match = nodes_[node].depth;
  }
  // Shorter ones first: a node's link leads to a shorter node, and is found through that of its parent.
  std::vector<uint32_t> order(nodes_.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return nodes_[a].depth < nodes_[b].depth; });
  for (const uint32_t i : order) {
    const auto [parent, byte] = parents[i];
    Node& node = nodes_[i];
    if (node.depth > 1) node.fail = next(nodes_[parent].fail, byte);
    if (node.match == 0) node.match = nodes_[node.fail].match;
  }
}

uint32_t StopText::next(uint32_t node, char byte) const {
  for (;; node = nodes_[node].fail) {
    if (const auto found = edges_.find(edge(node, byte)); found != edges_.end()) return found->second;
    if (node == 0) return 0;
  }
}

std::string StopText::push(std::string_view bytes) {
  if (stopped_) return {};
  std::string out = std::move(held_);
  for (const char byte : bytes) {
    out += byte;
    at_ = next(at_, byte);
    // The stop that is complete first wins; of those complete at the same byte, the longest.
    if (const uint32_t match = nodes_[at_].match; match > 0) {
      stopped_ = true;
      held_.clear();
      out.resize(out.size() - match);
      return out;
    }
  }
  held_ = out.substr(out.size() - nodes_[at_].depth);
  out.resize(out.size() - held_.size());
  return out;
}

std::string StopText::finish() {
  std::string out = std::move(held_);
  held_.clear();
  at_ = 0;
  return out;
}

}  // namespace ssm
