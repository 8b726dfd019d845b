// A text on its way to the model: pieces handed on from stage to stage without being stored.
#pragma once

#include <string_view>
#include <type_traits>

namespace ssm {

// A reference to a callable, which must outlive the call it is passed to; unlike std::function it owns and allocates
// nothing.
template <class>
class FunctionRef;

template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <class Callable, class = std::enable_if_t<!std::is_same_v<std::decay_t<Callable>, FunctionRef>>>
  FunctionRef(Callable&& callable)
      : object_(const_cast<void*>(static_cast<const void*>(&callable))),
        call_([](void* object, Arguments... arguments) {
          return (*static_cast<std::remove_reference_t<Callable>*>(object))(arguments...);
        }) {}
  Result operator()(Arguments... arguments) const { return call_(object_, arguments...); }

 private:
  void* object_;
  Result (*call_)(void*, Arguments...);
};

// `at_start`: the piece begins where the user's text begins (one rule of Metaspace asks).
struct Piece {
  std::string_view text;
  bool at_start;
};
using EmitPiece = FunctionRef<void(Piece)>;

}  // namespace ssm
