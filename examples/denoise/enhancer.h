// aTENNuate (Pei et al. 2024, arXiv 2409.03377), a published speech enhancer: a U-Net over raw samples whose every
// layer is a diagonal linear state space model. The same forward runs a recording at once, its SSMs as convolutions by
// FFT, or a stream in pieces of any size, its SSMs as recurrences with carried state. README.md has the equations.
//
// Widths, rates and modes come from the weights' shapes; names are those of the published file.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/files.h"
#include "ssm.h"

namespace denoise {

class Stream;

class Enhancer {
 public:
  // safetensors or PyTorch's own file. Throws ssm::Error on tensors that do not fit together.
  explicit Enhancer(const ssm::Path& weights, int threads = 0);
  Enhancer(Enhancer&&) noexcept;
  ~Enhancer();

  int64_t parameters() const;
  int64_t frame() const;  // samples that the innermost layers see as one step: the product of the rates
  // How far behind a stream its output runs at most: sample t is out once sample t + delay() is in.
  int64_t delay() const;
  std::vector<float> enhance(std::span<const float> recording) const;  // at once, as many samples out as in
  Stream stream() const;                                               // must not outlive this

 private:
  friend class Stream;
  struct Parts;
  std::unique_ptr<const Parts> parts_;
};

// One recording on its way through an Enhancer. What it keeps does not grow with what went through.
class Stream {
 public:
  Stream(Stream&&) noexcept;
  ~Stream();
  std::vector<float> push(std::span<const float> samples);  // what is ready; perhaps nothing, later more than was given
  std::vector<float> finish();                              // the rest; no push after it
  int64_t state_bytes() const;                              // kept between calls, as of now

 private:
  friend class Enhancer;
  struct Parts;
  explicit Stream(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace denoise
