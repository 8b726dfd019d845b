// Measuring: repeat a thing until its median is known, set it beside the machine's limits and a rival timed in the same
// run, print the rows as a table, JSON or CSV. Results are checked before they are timed (check()).
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

// Calls f once unmeasured, then at least 5 times and until half a second is over (at most 200 times).
Timing time(const std::function<void()>& f);
// The same for two things in turn, A B A B, so that a drifting machine drifts for both.
std::pair<Timing, Timing> time_in_turn(const std::function<void()>& a, const std::function<void()>& b);

struct Row {
  std::string group, name, shape;
  Timing timing;
  double rate = 0;  // work over the median time
  std::string unit;
  double limit = 0;  // the same unit: what the machine could do
  std::string limit_name;
  double rival = 0;  // the same unit
  std::string rival_name;
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

class Bench {
 public:
  Bench(Threads& threads, bool quiet) : threads_(threads), quiet_(quiet) {}
  Threads& threads() const { return threads_; }
  Ctx ctx(Tape* tape = nullptr) const { return {Device::cpu(), &threads_, tape}; }
  Ctx ref() const { return {Device::ref(), &threads_}; }

  void add(Row row);  // and prints it
  const std::vector<Row>& rows() const { return rows_; }
  // Throws Error unless found and expected agree to `tolerance` of the largest expected value.
  void check(const Tensor& found, const Tensor& expected, double tolerance, const std::string& what) const;

  double read_bandwidth();  // bytes a second, by MemoryReader; measured when first asked for

 private:
  Threads& threads_;
  bool quiet_;
  std::vector<Row> rows_;
  double read_bandwidth_ = 0;
};

// c (m, n) = op(a) op(b) by BLAS with its own threads: the rival of cpu::gemm and the limit of everything made of it.
void blas_gemm(const Matrix<float>& a, bool transpose_a, const Matrix<float>& b, bool transpose_b,
               const Matrix<float>& c, int threads);

Tensor random(const std::string& stream, const Shape& shape, double low = -1, double high = 1);  // f32

std::string table_header();
std::string table_row(const Row& row);
std::string csv(const std::vector<Row>& rows, const std::string& note, int threads);
std::string machine();  // "AMD EPYC ..., 2 cores"

// One function an op, beside the op.
void bench_linear(Bench& bench);
void bench_selective_scan(Bench& bench);
void bench_ssd(Bench& bench);
void bench_conv1d(Bench& bench);
void bench_rms_norm(Bench& bench);
void bench_gated_rms_norm(Bench& bench);
void bench_adamw(Bench& bench);

}  // namespace ssm::bench
