// Measuring: repeat a thing until its median is known, set it beside the machine's limits and a rival, print the rows
// as a table, JSON or CSV. Results are checked before they are timed (check()). On the cpu a clock measures and rivals
// run in the same run; on a GPU its own events do, work is queued as a recorded graph so that the host's part is not in
// the time, and the rival is what the published implementation was recorded at (bench/recorded.h).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/context.h"

namespace ssm::bench {

struct Timing {
  double median = 0, fastest = 0, slowest = 0;  // seconds
  int runs = 0;
};

// By the clock. Calls f once unmeasured, then at least 5 times and until half a second is over (at most 200 times).
Timing time(const std::function<void()>& f);
// The same for two things in turn, A B A B, so that a drifting machine drifts for both.
std::pair<Timing, Timing> time_in_turn(const std::function<void()>& a, const std::function<void()>& b);
Timing summary(std::vector<double> times);

struct Row {
  std::string group, name, shape;
  Timing timing;
  double elements = 0;  // of a scan, (token, channel): the time of one is a column of its own
  double rate = 0;      // work over the median time
  std::string unit;
  double limit = 0;  // the same unit: what the machine could do
  std::string limit_name;
  double rival = 0;  // the same unit
  std::string rival_name;
  std::string note;
};

// Reading memory that no cache keeps, on all threads: what a pass over weights costs at least.
class MemoryReader {
 public:
  explicit MemoryReader(Threads& threads);
  void read() const;
  double bytes() const { return static_cast<double>(buffer_.bytes()); }

 private:
  Threads& threads_;
  Tensor buffer_;
  mutable std::vector<uint64_t> sums_;
};

struct BenchOptions {
  Device device = Device::cpu();
  DType dtype = DType::f32;  // of activations and matrices
  std::string filter;        // rows whose name and shape do not contain this are left out
  bool quiet = false;
};

class Bench {
 public:
  Bench(Threads& threads, BenchOptions options) : threads_(threads), options_(std::move(options)) {}
  Threads& threads() const { return threads_; }
  const Device& device() const { return options_.device; }
  bool on_gpu() const { return options_.device.is_cuda(); }
  DType dtype() const { return options_.dtype; }
  Ctx ctx(Tape* tape = nullptr) const { return {options_.device, &threads_, tape}; }
  Ctx ref() const { return {Device::ref(), &threads_}; }
  std::string machine() const;  // the processor, or the GPU

  // Whether a row is asked for; what a row needs is made only then.
  bool wanted(const std::string& name, const std::string& shape) const;
  void add(Row row);  // and prints it
  const std::vector<Row>& rows() const { return rows_; }
  // Throws Error unless found and expected agree to `tolerance` of the largest expected value.
  void check(const Tensor& found, const Tensor& expected, double tolerance, const std::string& what) const;
  // What rounding to dtype() leaves of results that are compared with the same in f64; f32 is as good as the op is.
  double tolerance(double f32) const { return dtype() == DType::f32 ? f32 : dtype() == DType::bf16 ? 0x1p-6 : 0x1p-9; }

  // Random numbers on the device, in dtype() or in f32. A GPU gets a million of them over and over.
  Tensor random(const std::string& stream, const Shape& shape, double low = -1, double high = 1) const;
  Tensor random_f32(const std::string& stream, const Shape& shape, double low = -1, double high = 1) const;
  Tensor empty(const Shape& shape) const { return Tensor::empty(shape, dtype(), device()); }
  Tensor empty_f32(const Shape& shape) const { return Tensor::empty(shape, DType::f32, device()); }

  // Of one of the `calls` that f makes. On a GPU f is recorded, so it may ask nothing of the host after its first run.
  Timing time(const std::function<void()>& f, int64_t calls = 1) const;
  // Calls in a row, each with operands of its own that are `bytes`, until the GPU's cache holds none of them when its
  // turn comes again; 1 on the cpu, where an op of a model finds in the caches what the one before it left there.
  int64_t calls_past_cache(double bytes) const;

  // The limits, measured when first asked for, and their names. Bytes a second: reading on the cpu, copying (read and
  // written bytes counted) on a GPU. Operations a second: a bf16 product of 8192 x 8192 matrices; of a GPU alone.
  double bandwidth();
  std::string bandwidth_name() const { return on_gpu() ? "copy" : "read memory"; }
  double products();
  static constexpr const char* kProductsName = "8192^3 bf16";

 private:
  Tensor random_in(DType dtype, const std::string& stream, const Shape& shape, double low, double high) const;

  Threads& threads_;
  BenchOptions options_;
  std::vector<Row> rows_;
  double bandwidth_ = 0, products_ = 0;
};

// c (m, n) = op(a) op(b) by BLAS with its own threads: the rival of cpu::gemm and the limit of everything made of it.
void blas_gemm(const Matrix<float>& a, bool transpose_a, const Matrix<float>& b, bool transpose_b,
               const Matrix<float>& c, int threads);

Tensor random(const std::string& stream, const Shape& shape, double low = -1, double high = 1);  // f32, on the host
Tensor exact_copy(const Tensor& tensor);  // on the host in f64, contiguous: what ref is given

std::string table_header();
std::string table_row(const Row& row);
std::string csv(const Bench& bench, const std::string& note);

// One function an op, beside the op.
void bench_linear(Bench& bench);
void bench_cross_entropy(Bench& bench);
void bench_selective_scan(Bench& bench);
void bench_ssd(Bench& bench);
void bench_conv1d(Bench& bench);
void bench_rms_norm(Bench& bench);
void bench_gated_rms_norm(Bench& bench);
void bench_attention(Bench& bench);
void bench_lstm(Bench& bench);
void bench_adamw(Bench& bench);
void bench_fft_conv(Bench& bench);
void bench_ssm_kernel(Bench& bench);
void bench_lti(Bench& bench);

}  // namespace ssm::bench
