// The clock, the limits, the rows.
#include "bench/harness.h"

#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <thread>

#include "core/rng.h"

namespace ssm::bench {
namespace {

constexpr int kFewestRuns = 5, kMostRuns = 200, kMostRunsInTurn = 9;
constexpr double kSeconds = 0.5;

double seconds_of(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Timing summary(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back(), static_cast<int>(times.size())};
}

std::string format(const char* pattern, auto... values) {
  char buffer[256];
  std::snprintf(buffer, sizeof buffer, pattern, values...);
  return buffer;
}

std::string share(double part, double whole) { return whole > 0 ? format("%.0f %%", 100 * part / whole) : "-"; }

std::string milliseconds(double seconds) { return format("%.3f", seconds * 1e3); }

}  // namespace

Timing time(const std::function<void()>& f) {
  f();
  std::vector<double> times;
  double total = 0;
  while (static_cast<int>(times.size()) < kFewestRuns ||
         (total < kSeconds && static_cast<int>(times.size()) < kMostRuns)) {
    times.push_back(seconds_of(f));
    total += times.back();
  }
  return summary(std::move(times));
}

std::pair<Timing, Timing> time_in_turn(const std::function<void()>& a, const std::function<void()>& b) {
  // OpenBLAS's own threads spin for 2^28 cycles after a call, a tenth of a second, on the cores the other side needs.
  const auto settle = [] { std::this_thread::sleep_for(std::chrono::milliseconds(200)); };
  a(), b();
  std::vector<double> times_a, times_b;
  double total = 0;
  while (static_cast<int>(times_a.size()) < kFewestRuns ||
         (total < 2 * kSeconds && static_cast<int>(times_a.size()) < kMostRunsInTurn)) {
    settle();
    times_a.push_back(seconds_of(a));
    settle();
    times_b.push_back(seconds_of(b));
    total += times_a.back() + times_b.back();
  }
  return {summary(std::move(times_a)), summary(std::move(times_b))};
}

void Bench::add(Row row) {
  if (!quiet_) std::printf("%s\n", table_row(row).c_str()), std::fflush(stdout);
  rows_.push_back(std::move(row));
}

void Bench::check(const Tensor& found, const Tensor& expected, double tolerance, const std::string& what) const {
  const Tensor a = found.to(DType::f64).clone(), b = expected.to(DType::f64).clone();
  require(a.shape() == b.shape(), what, ": shape ", a.shape(), ", expected ", b.shape());
  double largest = 0, worst = 0;
  for (int64_t i = 0; i < b.count(); ++i) {
    largest = std::max(largest, std::abs(b.data<double>()[i]));
    const double error = std::abs(a.data<double>()[i] - b.data<double>()[i]);
    if (!(error <= worst)) worst = error;  // NaN counts as worst
  }
  require(worst <= tolerance * largest, what, ": wrong before it is timed; error ", worst, ", largest value ", largest);
}

MemoryReader::MemoryReader(Threads& threads)
    : threads_(threads), buffer_(Tensor::empty({int64_t{1} << 27}, DType::f32)), sums_(64) {  // 512 MiB
  std::fill_n(buffer_.data<float>(), buffer_.count(), 1.0f);
}

void MemoryReader::read() const {
  const auto* words = static_cast<const uint64_t*>(buffer_.raw());
  const auto tasks = static_cast<int64_t>(sums_.size()), count = buffer_.count() / 2 / tasks;
  threads_.parallel(tasks, [&](int64_t task, int) {
    uint64_t sum[8] = {};  // eight independent sums: the loads do not wait for the additions
    for (int64_t i = task * count; i < (task + 1) * count; i += 8)
      for (int64_t j = 0; j < 8; ++j) sum[j] += words[i + j];
    for (int64_t j = 1; j < 8; ++j) sum[0] += sum[j];
    sums_[static_cast<size_t>(task)] = sum[0];
  });
}

double Bench::read_bandwidth() {
  if (read_bandwidth_ > 0) return read_bandwidth_;
  const MemoryReader reader(threads_);
  const Timing timing = time([&] { reader.read(); });
  read_bandwidth_ = reader.bytes() / timing.median;
  add({.group = "machine",
       .name = "read memory",
       .shape = "512 MiB",
       .timing = timing,
       .rate = read_bandwidth_ / 1e9,
       .unit = "GB/s"});
  return read_bandwidth_;
}

void blas_gemm(const Matrix<float>& a, bool transpose_a, const Matrix<float>& b, bool transpose_b,
               const Matrix<float>& c, int threads) {
  const int before = openblas_get_num_threads();
  if (before != threads) openblas_set_num_threads(threads);
  const auto size = [](int64_t value) { return static_cast<blasint>(value); };
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
              size(c.rows), size(c.columns), size(transpose_a ? a.rows : a.columns), 1.0f, a.data, size(a.stride),
              b.data, size(b.stride), 0.0f, c.data, size(c.stride));
  if (before != threads) openblas_set_num_threads(before);
}

Tensor random(const std::string& stream, const Shape& shape, double low, double high) {
  const Tensor tensor = Tensor::empty(shape, DType::f32);
  const Rng rng(1, stream);
  float* to = tensor.data<float>();
  for (int64_t i = 0; i < tensor.count(); ++i)
    to[i] = static_cast<float>(low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
  return tensor;
}

std::string table_header() {
  return format("%-8s %-26s %-22s %10s %8s %9s %-11s %6s %-20s %s", "group", "what", "shape", "ms", "spread", "rate",
                "unit", "share", "of", "rival");
}

std::string table_row(const Row& row) {
  const double spread = row.timing.median > 0 ? (row.timing.slowest - row.timing.fastest) / row.timing.median : 0;
  const std::string rival =
      row.rival > 0 ? format("%.2f x %s", row.rate / row.rival, row.rival_name.c_str()) : std::string();
  return format("%-8s %-26s %-22s %10s %7.0f%% %9.4g %-11s %6s %-20s %s", row.group.c_str(), row.name.c_str(),
                row.shape.c_str(), milliseconds(row.timing.median).c_str(), 100 * spread, row.rate, row.unit.c_str(),
                share(row.rate, row.limit).c_str(), row.limit_name.c_str(), rival.c_str());
}

std::string csv(const std::vector<Row>& rows, const std::string& note, int threads) {
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
  std::string out =
      text("# ", machine(), "; ", threads, " threads; ", date, note.empty() ? "" : "; ", note, "\n",
           "group,what,shape,median_ms,fastest_ms,slowest_ms,runs,rate,unit,limit,limit_name,rival,rival_name\n");
  for (const Row& row : rows)
    out +=
        text(row.group, ",", row.name, ",\"", row.shape, "\",", milliseconds(row.timing.median), ",",
             milliseconds(row.timing.fastest), ",", milliseconds(row.timing.slowest), ",", row.timing.runs, ",",
             row.rate, ",", row.unit, ",", row.limit, ",", row.limit_name, ",", row.rival, ",", row.rival_name, "\n");
  return out;
}

std::string machine() {
  std::ifstream info("/proc/cpuinfo");
  std::string name = "unknown processor";
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      name = line.substr(line.find(':') + 2);
      break;
    }
  return name;
}

}  // namespace ssm::bench
