// Bytes in pieces to UTF-8 text in pieces, never half a character: an incomplete character at the end waits for the
// next piece. What cannot become valid UTF-8 is replaced by U+FFFD, one for each maximal subpart of an ill-formed
// sequence (The Unicode Standard, section 3.9, "U+FFFD Substitution of Maximal Subparts"), as browsers do. The joined
// output does not depend on how the input was cut.
#pragma once

#include <string>
#include <string_view>

namespace ssm {

class Utf8Stream {
 public:
  std::string push(std::string_view bytes);  // whole characters, ready to print
  std::string finish();                      // U+FFFD if a character was left incomplete, else nothing; starts anew

 private:
  std::string pending_;  // the valid beginning of a character, at most three bytes
};

}  // namespace ssm
