// Ends generated text at one of a few stop texts, wherever the borders of tokens lie. Bytes that may turn out to be
// the beginning of a stop text are held back until that is decided. What comes out does not depend on how the input
// was cut; the stop text itself does not come out.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ssm {

class StopText {
 public:
  explicit StopText(std::vector<std::string> stops);  // none: everything passes; an empty one is an Error
  std::string push(std::string_view bytes);           // what is decided to come before any stop
  std::string finish();                               // what was held back, at the end without a stop
  bool stopped() const { return stopped_; }

 private:
  size_t undecided() const;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace ssm
