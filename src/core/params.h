// Parameters, each declared once: name, shape, initial distribution, flags. Loading, saving, optimiser groups and
// precision follow from that line.
//
//   ParamStore store({.dtype = DType::f32, .seed = 1});          // random initial values
//   ParamStore store({.dtype = DType::f32, .source = &tensors}); // values of a checkpoint
//   Params root(store);
//   Var w = root.sub("layers").sub("0").get("norm.weight", {d}, Init::constant(1), {.no_decay = true});
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.h"
#include "core/tape.h"

namespace ssm {

// How a parameter starts. Distributions are those of the reference implementation (PyTorch's defaults).
class Init {
 public:
  using Fill = std::function<double(const Rng& rng, int64_t element)>;
  static Init constant(double value);
  static Init normal(double deviation);
  static Init uniform(double bound);                  // [-bound, bound)
  static Init fan_in(int64_t fan, double scale = 1);  // uniform(scale / sqrt(fan)): torch's Linear and Conv1d default
  static Init custom(Fill fill);                      // any function of the stream and the element's row-major index
  double operator()(const Rng& rng, int64_t element) const { return fill_(rng, element); }

 private:
  explicit Init(Fill fill) : fill_(std::move(fill)) {}
  Fill fill_;
};

struct Flags {
  bool no_decay = false;  // weight decay leaves it alone
  bool keep_f32 = false;  // f32 also in a bf16 or f16 model (in an f64 model everything is f64)
  double lr = 0;          // peak learning rate of its own, whose schedule is the run's; 0: the run's
};

struct Param {
  std::string name;
  Var var;
  Flags flags;
  Init init;
  Tensor master;  // trainable bf16 and f16: the same in f32, which the optimiser changes; else absent

  const Tensor& exact() const { return master ? master : var.value; }
};

using TensorMap = std::map<std::string, Tensor>;

class ParamStore {
 public:
  struct Options {
    DType dtype = DType::f32;
    uint64_t seed = 0;
    const TensorMap* source = nullptr;  // values by name; null: initialise
    bool as_stored = false;             // f32, bf16 and f16 of the source keep their dtype, whatever `dtype` is
    bool trainable = false;             // keep gradients; values are copies, never views of a mapped file
    Device device = {};                 // where values and gradients live
    bool shapes_only = false;           // no values: for counting a model that need not fit into memory
  };
  explicit ParamStore(const Options& options) : options_(options) {}
  ParamStore(const ParamStore&) = delete;
  ParamStore& operator=(const ParamStore&) = delete;

  DType dtype() const { return options_.dtype; }
  const Device& device() const { return options_.device; }
  // After the model is built: throws Error if the source holds a tensor nobody asked for, except those named here.
  void expect_all_used(std::string_view where, const std::vector<std::string>& allowed = {}) const;

  void forget_source() { options_.source = nullptr; }  // when all is declared; the source may go away then

  // In the order of declaration, which is the order a token meets them. Stable addresses.
  const std::vector<std::unique_ptr<Param>>& all() const { return params_; }
  Param* find(std::string_view name) const;
  Tensor initial_value(const Param& param) const;  // drawn anew on the host, f32 or f64
  int64_t count() const;                           // elements
  int64_t bytes() const;                           // of the values
  void forget_gradients();                         // the next write assigns
  void mark_on(Tape& tape) const;

 private:
  friend class Params;
  void place(Param& param, const Tensor& from, DType dtype) const;
  Options options_;
  std::vector<std::unique_ptr<Param>> params_;
  std::map<std::string_view, Param*> by_name_;
};

// A scope: a prefix of names.
class Params {
 public:
  explicit Params(ParamStore& store, std::string prefix = "") : store_(&store), prefix_(std::move(prefix)) {}
  Params sub(std::string_view name) const;  // "layers.3" for sub("layers").sub("3")
  // Declares prefix.name. The value comes from the source (shape checked, converted to the store's dtype) or from init.
  Var get(std::string_view name, const Shape& shape, const Init& init, Flags flags = {}) const;
  bool in_source(std::string_view name) const;  // false too when there is no source
  DType dtype() const { return store_->dtype(); }
  const Device& device() const { return store_->device(); }

 private:
  std::string full(std::string_view name) const;
  ParamStore* store_;
  std::string prefix_;
};

}  // namespace ssm
