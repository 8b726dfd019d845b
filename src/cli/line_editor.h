// Lines that a person types: edited and with a history (arrow keys, Ctrl-R) on a terminal, through libedit; elsewhere
// as they come. Without libedit at build time a terminal edits lines as it does by itself.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace ssm::cli {

class LineEditor {
 public:
  LineEditor();
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  bool is_terminal() const;  // somebody types and sees prompts
  // The next line without its end; none at the end of the input (Ctrl-D) or, unless somebody types, after Ctrl-C, which
  // otherwise begins the line anew. The prompt goes to stderr.
  std::optional<std::string> next(const std::string& prompt);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace ssm::cli
