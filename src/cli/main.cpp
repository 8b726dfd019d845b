// The program `ssm`: the table of commands, and the one place where errors are caught and become exit codes.
#include <cstdio>
#include <filesystem>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "cli/app.h"
#include "cli/terminal.h"

namespace {

using namespace ssm::cli;

int fail(std::string_view what, int code) {
  std::fprintf(stderr, "error: %s\n", one_line(what).c_str());
  return code;
}

Commands all_commands() {
  Commands commands;
  commands.push_back(make_train());
  commands.push_back(make_generate());
  commands.push_back(make_evaluate());
  commands.push_back(make_logits());
  commands.push_back(make_gradients());
  commands.push_back(make_tokenize());
  commands.push_back(make_info());
  commands.push_back(make_convert());
  commands.push_back(make_task());
  commands.push_back(make_bench());
  commands.push_back(make_lti());
  commands.push_back(make_hippo());
  return commands;
}

}  // namespace

int main(int argc, char** argv) {
  catch_signals();
  try {
    return run_app(all_commands(), std::vector<std::string>(argv + 1, argv + argc));
  } catch (const UsageError& error) {
    return fail(error.what(), kUsage);
  } catch (const ssm::Error& error) {
    return fail(error.what(), kUserError);
  } catch (const BrokenPipe&) {
    return kBrokenPipe;
  } catch (const Interrupted&) {
    return kInterrupted;
  } catch (const std::bad_alloc&) {
    return fail("out of memory", kUserError);
  } catch (const std::filesystem::filesystem_error& error) {
    return fail(error.code().message() + ": " + error.path1().string(), kUserError);
  } catch (const std::exception& error) {
    return fail(std::string("unexpected: ") + error.what(), kUserError);
  }
}
