// What the enhancer is made of. A layer holds weights; what it carries from piece to piece is in the State beside it,
// so that one set of weights serves many streams. Rows are time steps, (t, channels); no rows are an absent tensor.
#pragma once

#include <string>
#include <vector>

#include "ops/discretize/discretize.h"
#include "ssm.h"

namespace denoise {

using ssm::Ctx;
using ssm::Network;
using ssm::Tensor;

inline int64_t rows_of(const Tensor& x) { return x ? x.size(0) : 0; }

// All elements of a named tensor, checked: `shape` has -1 where any size will do.
Tensor load(const Network& weights, const std::string& name, const std::vector<int64_t>& shape);

// How a layer sees its input: a whole sequence, which starts and ends here, or a piece of one.
enum class Extent { whole, piece };

// First in, first out, of rows.
class Rows {
 public:
  explicit Rows(int64_t columns) : columns_(columns) {}
  void push(const Tensor& x);
  Tensor take(int64_t rows);  // absent where rows is 0
  int64_t size() const { return static_cast<int64_t>(values_.size() - begin_) / columns_; }
  int64_t bytes() const { return static_cast<int64_t>((values_.size() - begin_) * sizeof(float)); }

 private:
  int64_t columns_;
  size_t begin_ = 0;
  std::vector<float> values_;
};

// Modes that never meet, (1) to (3) of README.md: v_n = K_n * (B x)_n, y = C v.
class DiagonalSsm {
 public:
  DiagonalSsm(const Network& weights, const std::string& name, int64_t channels);
  Tensor whole(const Ctx& ctx, const Tensor& x) const;                 // by convolution
  Tensor piece(const Ctx& ctx, const Tensor& x, Tensor& state) const;  // by recurrence
  Tensor zero_state() const;

 private:
  int64_t modes() const { return B_.size(0); }
  ssm::StateSpace system_;  // z (2, 1, n), b and c one: modes as channels of one mode each
  Tensor B_, C_;            // (n, channels), with the step's length; (channels, n)
};

// [convolution that looks one step ahead] -> SSM -> [layer norm] -> [SiLU], in brackets where there are channels.
class Block {
 public:
  enum class End { silu, linear };
  Block(const Network& weights, const std::string& name, int64_t channels, End end = End::silu);

  struct State {
    Tensor conv, ssm;
    bool started = false;  // a step went into the convolution
    int64_t bytes() const { return conv.bytes() + ssm.bytes(); }
  };
  State start() const;
  // `last`: nothing follows, so what was waiting for its next step is given zeros.
  Tensor forward(const Ctx& ctx, const Tensor& x, State& state, Extent extent, bool last) const;
  int64_t ahead() const { return conv_ ? 1 : 0; }

 private:
  Tensor convolve(const Ctx& ctx, const Tensor& x, State& state, bool last) const;

  int64_t channels_;
  Tensor conv_, conv_bias_, norm_, norm_bias_;  // (channels, 1, 3), (channels); absent where channels is 1
  DiagonalSsm ssm_;
  End end_;
};

// (4): r steps of (c) become one of (d).
class Merge {
 public:
  Merge(const Network& weights, const std::string& name, int64_t channels);
  int64_t rate() const { return rate_; }
  int64_t channels_out() const { return weight_.size(0); }
  Tensor forward(const Ctx& ctx, const Tensor& x, Rows& waiting) const;

 private:
  int64_t rate_;
  Tensor weight_;  // (d, r c)
};

// (5): one step of (c) becomes r of (d).
class Expand {
 public:
  Expand(const Network& weights, const std::string& name, int64_t channels, int64_t channels_out, int64_t rate);
  Tensor forward(const Ctx& ctx, const Tensor& x) const;

 private:
  int64_t rate_;
  Tensor weight_;  // (r d, c)
};

}  // namespace denoise
