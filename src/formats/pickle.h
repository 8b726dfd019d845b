// A restricted pickle reader. A pickle is a program for a stack machine that may import and call anything; this machine
// imports nothing and calls nothing. It knows the opcodes that build plain values, and the globals a caller lists: a
// call to one of them is kept as data (its name and arguments) for the caller to interpret. Everything else is an
// Error. Protocols 2 to 5 as torch.save writes them: no protocol 0 text forms, no sets, no instances of classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ssm {

struct PickleValue {
  enum class Kind {
    other,       // None, booleans, floats, bytes, integers beyond 64 bits: nobody here asks for their value
    integer,     //
    text,        //
    tuple,       // items
    list,        // items
    dict,        // items: key, value, key, value, ... as assigned, so the last of equal keys counts
    global,      // text is its name
    call,        // text is the name of the global, items the one tuple of its arguments
    persistent,  // items: the one persistent id (a storage, in PyTorch's use)
  };
  Kind kind = Kind::other;
  int64_t integer = 0;
  std::string_view text;
  std::vector<const PickleValue*> items;
  bool is(Kind expected) const { return kind == expected; }
  const std::vector<const PickleValue*>& arguments() const { return items[0]->items; }  // of a call
};

class Pickle {
 public:
  enum class Global {
    name,      // may be mentioned
    dict,      // calling it without arguments gives an empty dict
    function,  // a call is kept as data
  };
  using Globals = std::map<std::string, Global, std::less<>>;  // by "module.name"

  // Runs the program. `program` and `allowed` must outlive the values; `where` opens error messages.
  Pickle(std::span<const std::byte> program, const Globals& allowed, const std::string& where);
  Pickle(const Pickle&) = delete;
  Pickle& operator=(const Pickle&) = delete;
  const PickleValue& result() const { return *result_; }

 private:
  // Values may contain themselves, so they are owned here and refer to each other plainly.
  std::deque<PickleValue> values_;
  const PickleValue* result_ = nullptr;
};

}  // namespace ssm
