// fft_conv by kissfft's real transforms, threads over blocks of channels. Sequences of one length share the transform
// of the kernel. Equations: README.md.
#include <kissfft/kiss_fftr.h>

#include <algorithm>
#include <complex>
#include <map>
#include <memory>
#include <vector>

#include "ops/fft_conv/fft_conv.h"

namespace ssm::cpu {
namespace {

using Complex = std::complex<float>;
static_assert(sizeof(Complex) == sizeof(kiss_fft_cpx));

constexpr int64_t kBlock = 16;  // channels of a task: a cache line of every row

// Transforms of one length; not to be shared by threads.
class Transform {
 public:
  explicit Transform(int64_t size)
      : size_(size), line_(static_cast<size_t>(size)), forward_(plan(size, 0)), inverse_(plan(size, 1)) {}

  // Of `length` numbers and zeros.
  void forward(const float* from, int64_t length, std::vector<Complex>& to) {
    std::copy_n(from, length, line_.begin());
    std::fill(line_.begin() + length, line_.end(), 0.0f);
    to.resize(line_.size() / 2 + 1);
    kiss_fftr(forward_.get(), line_.data(), reinterpret_cast<kiss_fft_cpx*>(to.data()));
  }
  // The first `length` numbers of the inverse.
  void inverse(const std::vector<Complex>& from, int64_t length, float* to) {
    kiss_fftri(inverse_.get(), reinterpret_cast<const kiss_fft_cpx*>(from.data()), line_.data());
    const float scale = 1 / static_cast<float>(size_);
    for (int64_t i = 0; i < length; ++i) to[i] = line_[static_cast<size_t>(i)] * scale;
  }

 private:
  struct Free {
    void operator()(kiss_fftr_state* state) const { kiss_fftr_free(state); }
  };
  using Plan = std::unique_ptr<kiss_fftr_state, Free>;
  static Plan plan(int64_t size, int inverse) {
    Plan made(kiss_fftr_alloc(static_cast<int>(size), inverse, nullptr, nullptr));
    require(made != nullptr, "fft_conv: no memory for transforms of ", size);
    return made;
  }

  int64_t size_;
  std::vector<float> line_;
  Plan forward_, inverse_;
};

// Long enough that the end does not reach the beginning again: 2 * length - 1 or more.
int64_t padded(int64_t length) { return 2 * int64_t{kiss_fft_next_fast_size(static_cast<int>(length))}; }

// Some columns of rows [begin, begin + length) as (columns, length), and back.
void gather(const Matrix<float>& from, int64_t begin, int64_t length, int64_t column, int64_t columns, float* to) {
  for (int64_t t = 0; t < length; ++t)
    for (int64_t c = 0; c < columns; ++c) to[c * length + t] = from[begin + t][column + c];
}
void scatter(const float* from, const Matrix<float>& to, int64_t begin, int64_t length, int64_t column,
             int64_t columns) {
  for (int64_t t = 0; t < length; ++t)
    for (int64_t c = 0; c < columns; ++c) to[begin + t][column + c] = from[c * length + t];
}

// (a, b) -> a b, written out: std::complex's own checks for NaN.
Complex product(Complex a, Complex b) {
  return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

// Length -> first rows of the sequences that have it.
std::map<int64_t, std::vector<int64_t>> by_length(const Seqs& seqs) {
  std::map<int64_t, std::vector<int64_t>> groups;
  for (int64_t s = 0; s < seqs.count(); ++s)
    if (seqs.length(s) > 0) groups[seqs.length(s)].push_back(seqs.offsets[static_cast<size_t>(s)]);
  return groups;
}

// Calls body(first channel, channels, transform) for all blocks of channels, each worker with a transform of its own.
template <class Body>
void for_blocks(int64_t e, int64_t length, Threads& threads, const Body& body) {
  std::vector<std::unique_ptr<Transform>> transforms(static_cast<size_t>(threads.count()));
  threads.parallel((e + kBlock - 1) / kBlock, [&](int64_t task, int worker) {
    auto& mine = transforms[static_cast<size_t>(worker)];
    if (!mine) mine = std::make_unique<Transform>(padded(length));
    body(task * kBlock, std::min(kBlock, e - task * kBlock), *mine);
  });
}

}  // namespace

void fft_conv_forward(const FftConvForward& args, Threads& threads) {
  const auto u = args.u.matrix<float>(), K = args.K.matrix<float>(), y = args.y.matrix<float>();
  const float* D = args.D.data<float>();
  for (const auto& [length, begins] : by_length(*args.seqs)) {
    for_blocks(u.columns, length, threads,
               [&, length = length, &begins = begins](int64_t c, int64_t channels, Transform& fft) {
                 std::vector<float> columns(static_cast<size_t>(channels * length));
                 std::vector<std::vector<Complex>> kernel(static_cast<size_t>(channels));
                 std::vector<Complex> line;
                 gather(K, 0, length, c, channels, columns.data());
                 for (int64_t i = 0; i < channels; ++i)
                   fft.forward(columns.data() + i * length, length, kernel[static_cast<size_t>(i)]);
                 for (const int64_t begin : begins) {
                   gather(u, begin, length, c, channels, columns.data());
                   for (int64_t i = 0; i < channels; ++i) {
                     float* column = columns.data() + i * length;
                     fft.forward(column, length, line);
                     for (size_t j = 0; j < line.size(); ++j)
                       line[j] = product(line[j], kernel[static_cast<size_t>(i)][j]);
                     fft.inverse(line, length, column);
                   }
                   if (D)
                     for (int64_t t = 0; t < length; ++t)
                       for (int64_t i = 0; i < channels; ++i)
                         columns[static_cast<size_t>(i * length + t)] += D[c + i] * u[begin + t][c + i];
                   scatter(columns.data(), y, begin, length, c, channels);
                 }
               });
  }
}

void fft_conv_backward(const FftConvBackward& args, Threads& threads) {
  const auto u = args.u.matrix<float>(), K = args.K.matrix<float>(), dy = args.dy.matrix<float>(),
             du = args.du.matrix<float>(), dK = args.dK.matrix<float>();
  const float* D = args.D.data<float>();
  float* dD = args.dD.data<float>();
  if (dK) args.dK.fill_zero();
  if (dD) args.dD.fill_zero();
  for (const auto& [length, begins] : by_length(*args.seqs)) {
    for_blocks(u.columns, length, threads,
               [&, length = length, &begins = begins](int64_t c, int64_t channels, Transform& fft) {
                 std::vector<float> inputs(static_cast<size_t>(channels * length)), seeds(inputs.size());
                 std::vector<std::vector<Complex>> kernel(static_cast<size_t>(channels)), dkernel(kernel.size());
                 std::vector<Complex> input, seed;
                 gather(K, 0, length, c, channels, inputs.data());
                 for (size_t i = 0; i < kernel.size(); ++i) {
                   fft.forward(inputs.data() + static_cast<int64_t>(i) * length, length, kernel[i]);
                   dkernel[i].assign(kernel[i].size(), Complex(0));
                 }
                 for (const int64_t begin : begins) {
                   gather(u, begin, length, c, channels, inputs.data());
                   gather(dy, begin, length, c, channels, seeds.data());
                   for (int64_t i = 0; i < channels; ++i) {
                     const float* x = inputs.data() + i * length;
                     float* column = seeds.data() + i * length;
                     fft.forward(x, length, input);
                     fft.forward(column, length, seed);
                     if (dD) {
                       double sum = 0;
                       for (int64_t t = 0; t < length; ++t) sum += static_cast<double>(x[t]) * column[t];
                       dD[c + i] += static_cast<float>(sum);  // (4)
                     }
                     auto& dkernel_line = dkernel[static_cast<size_t>(i)];
                     const auto& kernel_line = kernel[static_cast<size_t>(i)];
                     for (size_t j = 0; j < seed.size(); ++j) {
                       dkernel_line[j] += product(std::conj(input[j]), seed[j]);  // (3)
                       seed[j] = product(std::conj(kernel_line[j]), seed[j]);     // (2)
                     }
                     if (du) fft.inverse(seed, length, column);
                   }
                   if (!du) continue;
                   if (D)
                     for (int64_t t = 0; t < length; ++t)
                       for (int64_t i = 0; i < channels; ++i)
                         seeds[static_cast<size_t>(i * length + t)] += D[c + i] * dy[begin + t][c + i];
                   scatter(seeds.data(), du, begin, length, c, channels);
                 }
                 if (!dK) return;
                 for (int64_t i = 0; i < channels; ++i) {
                   fft.inverse(dkernel[static_cast<size_t>(i)], length, inputs.data());
                   for (int64_t l = 0; l < length; ++l) dK[l][c + i] += inputs[static_cast<size_t>(l)];
                 }
               });
  }
}

}  // namespace ssm::cpu
