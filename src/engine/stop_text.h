// Ends generated text at one of a few stop texts, wherever the borders of tokens lie. Bytes that may turn out to be
// the beginning of a stop text are held back until that is decided. What comes out does not depend on how the input
// was cut; the stop text itself does not come out.
//
// The automaton of Aho and Corasick (1975): constant time a byte, whatever the number and length of the stop texts;
// memory about 60 bytes a byte of theirs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ssm {

class StopText {
 public:
  explicit StopText(const std::vector<std::string>& stops);  // none: everything passes; an empty one is an Error
  std::string push(std::string_view bytes);                  // what is decided to come before any stop
  std::string finish();                                      // what was held back, at the end without a stop
  bool stopped() const { return stopped_; }

 private:
  // A beginning of a stop text.
  struct Node {
    uint32_t fail = 0;   // its longest end that is another node
    uint32_t depth = 0;  // bytes
    uint32_t match = 0;  // bytes of the longest stop text it ends with; 0: none
  };
  static uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<unsigned char>(byte); }
  uint32_t next(uint32_t node, char byte) const;

  std::vector<Node> nodes_ = {Node{}};  // the root is the empty beginning
  std::unordered_map<uint64_t, uint32_t> edges_;
  uint32_t at_ = 0;   // the longest end of the text so far that begins a stop text
  std::string held_;  // its bytes
  bool stopped_ = false;
};

}  // namespace ssm
