#include "tokenizers/added_tokens.h"

#include <algorithm>
#include <deque>

#include "tokenizers/unicode.h"
#include "tokenizers/utf8.h"

namespace ssm {

void AddedTokens::add(const AddedToken& token, const std::string& pattern) {
  if (!pattern.empty()) rules_.try_emplace(pattern, Rule{token.id, token.single_word, token.lstrip, token.rstrip});
}

void AddedTokens::build() {
  // Breadth first over the sorted patterns: a node is a range of patterns with a common beginning.
  struct Range {
    uint32_t node;
    size_t begin, end, depth;
  };
  std::vector<const std::string*> patterns;
  for (const auto& [pattern, rule] : rules_) {
    patterns.push_back(&pattern);
    sorted_.push_back(rule);
    begins_[static_cast<unsigned char>(pattern[0])] = true;
  }
  nodes_.assign(1, {});
  std::deque<Range> open{{0, 0, patterns.size(), 0}};
  while (!open.empty()) {
    auto [node, begin, end, depth] = open.front();
    open.pop_front();
    if (begin < end && patterns[begin]->size() == depth) nodes_[node].rule = static_cast<int32_t>(begin++);
    nodes_[node].children = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const char byte = (*patterns[begin])[depth];
      size_t next = begin;
      while (next < end && (*patterns[next])[depth] == byte) ++next;
      ++nodes_[node].count;
      nodes_.push_back({.byte = static_cast<unsigned char>(byte)});
      open.push_back({static_cast<uint32_t>(nodes_.size() - 1), begin, next, depth + 1});
      begin = next;
    }
  }
  if (nodes_[0].count == 1) only_begin_ = std::string(1, static_cast<char>(nodes_[nodes_[0].children].byte));
}

uint32_t AddedTokens::child_of(uint32_t node, char byte) const {
  const auto wanted = static_cast<unsigned char>(byte);
  const auto first = nodes_.begin() + nodes_[node].children, last = first + nodes_[node].count;
  const auto found = std::lower_bound(first, last, wanted, [](const Node& n, unsigned char b) { return n.byte < b; });
  return found == last || found->byte != wanted ? 0 : static_cast<uint32_t>(found - nodes_.begin());
}

std::optional<AddedTokens::Found> AddedTokens::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!only_begin_.empty()) {
      begin = text.find(only_begin_[0], begin);
      if (begin == text.npos) break;
    } else if (!begins_[static_cast<unsigned char>(text[begin])]) {
      continue;
    }
    const Rule* longest = nullptr;
    size_t end = begin;
    uint32_t node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      node = child_of(node, text[at]);
      if (node == 0) break;
      if (nodes_[node].rule >= 0) {
        longest = &sorted_[static_cast<size_t>(nodes_[node].rule)];
        end = at + 1;
      }
    }
    if (longest) return Found{begin, end, longest};
  }
  return std::nullopt;
}

void AddedTokens::split(Piece piece, FunctionRef<void(Piece)> text, FunctionRef<void(int64_t)> token) const {
  const std::string_view whole = piece.text;
  size_t done = 0, from = 0;
  while (const std::optional<Found> found = rules_.empty() ? std::nullopt : find(whole, from)) {
    auto [begin, end, rule] = *found;
    from = end;
    if (rule->single_word) {
      const bool joined_left = begin > 0 && is(point_at(whole, previous_start(whole, begin)), kWord);
      const bool joined_right = end < whole.size() && is(point_at(whole, end), kWord);
      if (joined_left || joined_right) continue;
    }
    if (rule->lstrip) {
      while (begin > done) {
        const size_t before = previous_start(whole, begin);
        if (!is(point_at(whole, before), kWhitespace)) break;
        begin = before;
      }
      begin = std::max(begin, done);  // the token before may have taken the space that this one is made of
    }
    if (rule->rstrip)
      while (end < whole.size() && is(point_at(whole, end), kWhitespace)) next_point(whole, end);
    if (begin > done) text({whole.substr(done, begin - done), piece.at_start && done == 0});
    if (begin < end) token(rule->id);
    done = end;
  }
  if (done < whole.size()) text({whole.substr(done), piece.at_start && done == 0});
}

}  // namespace ssm
