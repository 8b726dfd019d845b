// The added tokens of a tokenizer file: strings that are found in a text before it is split into words, and are ids by
// themselves (<|endoftext|>, runs of spaces). Some are looked for in the text as it comes, the others ("normalized") in
// the normalised text. In each case the leftmost one counts, and the longest of those that begin at one place.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizers/pieces.h"

namespace ssm {

struct AddedToken {
  int64_t id;
  std::string content;
  bool single_word, lstrip, rstrip, normalized, special;
};

class AddedTokens {
 public:
  // `pattern` is what is looked for: the content, or its normal form. Of tokens with the same pattern (two that
  // differ before normalisation) the first is found; the package that made the files picks one at random.
  void add(const AddedToken& token, const std::string& pattern);
  void build();  // once, after the last add

  // Calls `token(id)` for each token that is found, and `text(piece)` for what lies between, in order.
  void split(Piece piece, FunctionRef<void(Piece)> text, FunctionRef<void(int64_t)> token) const;

 private:
  struct Rule {
    int64_t id;
    bool single_word, lstrip, rstrip;
  };
  // A trie: the children of a node lie side by side, in order of their bytes.
  struct Node {
    uint32_t children = 0, count = 0;
    int32_t rule = -1;
    unsigned char byte = 0;
  };
  struct Found {
    size_t begin, end;
    const Rule* rule;
  };
  std::optional<Found> find(std::string_view text, size_t from) const;
  uint32_t child_of(uint32_t node, char byte) const;

  std::map<std::string, Rule> rules_;
  std::vector<Rule> sorted_;
  std::vector<Node> nodes_;
  std::array<bool, 256> begins_{};  // a pattern begins with this byte
  std::string only_begin_;          // that byte, if there is but one
};

}  // namespace ssm
