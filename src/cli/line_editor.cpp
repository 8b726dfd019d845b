#include "cli/line_editor.h"

#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <string_view>

#ifdef SSM_LIBEDIT
#include <histedit.h>
#include <langinfo.h>
#endif

#include "cli/line_reader.h"
#include "cli/terminal.h"

namespace ssm::cli {

#ifdef SSM_LIBEDIT

struct LineEditor::Parts {
  Parts() {
    if (isatty(STDIN_FILENO) != 1 || isatty(STDERR_FILENO) != 1) return;
    // Characters of more than one byte are edited whole only under a locale that says so. Nothing but the types of
    // characters changes.
    setlocale(LC_CTYPE, "");
    if (std::string_view(nl_langinfo(CODESET)) != "UTF-8") setlocale(LC_CTYPE, "C.UTF-8");
    constexpr int kRemembered = 1000;
    editor = el_init("ssm", stdin, stderr, stderr);
    lines = history_init();
    if (!editor || !lines) return;
    HistEvent event;
    history(lines, &event, H_SETSIZE, kRemembered);
    history(lines, &event, H_SETUNIQUE, 1);
    el_set(editor, EL_CLIENTDATA, this);
    el_set(editor, EL_PROMPT, &Parts::show);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, history, lines);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  }
  ~Parts() {
    if (lines) history_end(lines);
    if (editor) el_end(editor);
  }
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;

  static char* show(EditLine* from) {
    void* self = nullptr;
    el_get(from, EL_CLIENTDATA, &self);
    return static_cast<Parts*>(self)->prompt.data();
  }

  std::optional<std::string> edit(const std::string& shown) {
    prompt = shown;
    for (;;) {
      int length = 0;
      const char* typed = nullptr;
      {
        const InterruptsEndWaiting guard;
        typed = el_gets(editor, &length);
      }
      if (interrupted()) {  // Ctrl-C: the line is dropped
        if (!forget_interrupt()) return std::nullopt;
        el_reset(editor);
        std::fputs("^C\n", stderr);
        continue;
      }
      if (!typed || length <= 0) {
        std::fputc('\n', stderr);
        return std::nullopt;
      }
      std::string line(typed, static_cast<size_t>(length));
      HistEvent event;
      if (line.find_first_not_of(" \t\n") != std::string::npos) history(lines, &event, H_ENTER, line.c_str());
      if (line.back() == '\n') line.pop_back();
      return line;
    }
  }

  EditLine* editor = nullptr;
  ::History* lines = nullptr;
  std::string prompt;
  LineReader reader{"-"};
};

bool LineEditor::is_terminal() const { return parts_->editor && parts_->lines; }

std::optional<std::string> LineEditor::next(const std::string& prompt) {
  return is_terminal() ? parts_->edit(prompt) : parts_->reader.next();
}

#else

struct LineEditor::Parts {
  LineReader reader{"-"};
};

bool LineEditor::is_terminal() const { return isatty(STDIN_FILENO) == 1 && isatty(STDERR_FILENO) == 1; }

std::optional<std::string> LineEditor::next(const std::string& prompt) {
  for (;;) {
    if (is_terminal()) std::fputs(prompt.c_str(), stderr);
    auto line = parts_->reader.next();
    if (line || !is_terminal() || !interrupted() || !forget_interrupt()) return line;
    std::fputc('\n', stderr);
  }
}

#endif

LineEditor::LineEditor() : parts_(std::make_unique<Parts>()) {}
LineEditor::~LineEditor() = default;

}  // namespace ssm::cli
