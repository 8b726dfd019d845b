// Reverse-mode differentiation over fused operations. A node is one call of an op: the gradients of its outputs go
// in, its analytic backward writes the gradients of its inputs. The tape sits in Ctx; inference has none.
//
// Rules: an op names what it saves and captures nothing else; the first write to a gradient assigns, later ones add;
// a recorded value is not changed in place; there is no second order.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace ssm {

// The gradient of one value: allocated when first asked for.
struct Grad {
  Shape shape;
  DType dtype = DType::f32;
  Device device;
  Tensor value;
  bool written = false;
  std::shared_ptr<Grad> whole;  // for a part made by split: the gradient it is some columns of
  int64_t first_column = 0;

  const Tensor& storage();  // allocates
};
using GradPtr = std::shared_ptr<Grad>;

// Makes a tensor anew in the backward that the forward had and did not keep.
using MakeAgain = std::shared_ptr<const std::function<Tensor()>>;

// A value that the backward of its own op makes once more, on its way: who reads it in the backward alone need not keep
// it, and leaves here what is to be done when it is there. That op calls them in order, as its last act.
struct Late {
  std::vector<std::function<void(const Tensor&)>> waiting;
};
using LatePtr = std::shared_ptr<Late>;

// A value and, if anybody may want it, its gradient.
struct Var {
  Tensor value;
  GradPtr grad;     // null: no gradient is kept
  MakeAgain again;  // set where the value is less work to make again than it is worth to save
  LatePtr late;     // set where the value need not be saved by who can wait for it
  explicit operator bool() const { return static_cast<bool>(value); }
};

// Where a backward puts one gradient. It assigns to `out` (absent if nobody wants this gradient); when the gradient
// had been written before, `out` is scratch and the destructor adds it.
class GradOut {
 public:
  explicit GradOut(const GradPtr& grad);
  ~GradOut();
  GradOut(const GradOut&) = delete;
  GradOut& operator=(const GradOut&) = delete;
  Tensor out;

 private:
  GradPtr grad_;
  bool add_ = false;
};

// The same for kernels that can add while they write (GEMM with beta = 1): the gradient itself.
struct GradInPlace {
  Tensor out;       // absent if nobody wants it
  bool accumulate;  // add to out, else assign
};
GradInPlace write_in_place(const GradPtr& grad);

struct Saved {
  Saved(const char* what, Tensor value) : name(what), tensor(std::move(value)) {}
  Saved(const char* what, const Var& var) : name(what), tensor(var.again ? Tensor() : var.value), again(var.again) {}

  const char* name;
  Tensor tensor;
  MakeAgain again;
};

// What a backward reads: the saved tensors by name and the gradients of the outputs by position.
class Backward {
 public:
  Backward(const std::vector<Saved>& saved, const std::vector<GradPtr>& outputs) : saved_(saved), outputs_(outputs) {}
  const Tensor& saved(std::string_view name) const;
  const Tensor& grad(size_t output = 0) const;  // zeros if the output was not used; never absent
  Tensor grad_if_any(size_t output) const;      // absent if the output was not used

 private:
  const std::vector<Saved>& saved_;
  const std::vector<GradPtr>& outputs_;
};
using BackwardFn = std::function<void(const Backward&)>;

struct SavedBytes {
  std::string op;
  int64_t bytes = 0;
  int64_t nodes = 0;
};

enum class Pass { forward, backward };

class Tape {
 public:
  // Told of an op when its forward was recorded, and again when its backward has been called: on one stream, what lies
  // between two calls is the work of the second's op. For who measures; none unless set.
  using Observer = std::function<void(const char* op, Pass pass)>;
  void observe(Observer observer) { observer_ = std::move(observer); }

  Var variable(Tensor value) const;  // an op's output
  void record(const char* op, std::vector<Saved> saved, std::vector<GradPtr> outputs, BackwardFn backward);

  // Runs the nodes last to first from d loss = `seed`, freeing what each saved as it is done. The tape is empty after.
  void backward(const Var& loss, double seed = 1.0);
  // The same from given gradients of several values.
  void backward(const std::vector<std::pair<Var, Tensor>>& seeds);

  // Bytes saved for the backward by op since the tape was made, largest first; memory held by two nodes counts once,
  // parameters do not count. Tensors named in `Saved` but kept alive by a Params are told by mark_parameter().
  std::vector<SavedBytes> report() const;
  void mark_parameter(const Tensor& value) { counted_.insert(value.storage()); }

 private:
  struct Node {
    const char* op;
    std::vector<Saved> saved;
    std::vector<GradPtr> outputs;
    BackwardFn backward;
  };
  void run_backward();
  std::vector<Node> nodes_;
  std::map<std::string, SavedBytes> bytes_;
  std::set<const void*> counted_;
  Observer observer_;
};

}  // namespace ssm
