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

#include "bench/recorded.h"
#include "core/rng.h"
#include "ops/linear/linear.h"

namespace ssm::bench {
namespace {

constexpr int kFewestRuns = 5, kMostRuns = 200, kMostRunsInTurn = 9;
constexpr double kSeconds = 0.5;
// A GPU's times differ little, and its minutes are dear.
constexpr int kMostGpuRuns = 60;
constexpr double kGpuSeconds = 0.1;
// Several times the largest cache of a GPU there is.
constexpr double kPastCache = 256 << 20;

double seconds_of(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string format(const char* pattern, auto... values) {
  char buffer[256];
  std::snprintf(buffer, sizeof buffer, pattern, values...);
  return buffer;
}

std::string share(double part, double whole) { return whole > 0 ? format("%.0f %%", 100 * part / whole) : "-"; }

std::string milliseconds(double seconds) { return format("%.3f", seconds * 1e3); }
// Of a scan's element, in picoseconds.
std::string picoseconds(const Row& row) {
  return row.elements > 0 ? format("%.2f", row.timing.median / row.elements * 1e12) : std::string();
}

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

// Queued back to back, so that no launch waits for the host.
Timing time_on_gpu(const Device& device, const std::function<void()>& f) {
  if constexpr (kHasCuda) {
    f();  // makes what is made once
    cuda::Graph graph(device, f);
    const auto measure = [&](int runs) {
      std::vector<cuda::Event> marks(static_cast<size_t>(runs) + 1);
      graph.launch();
      marks[0].record(cuda::stream(device));
      for (size_t i = 1; i < marks.size(); ++i) {
        graph.launch();
        marks[i].record(cuda::stream(device));
      }
      marks.back().wait();
      std::vector<double> times;
      for (size_t i = 1; i < marks.size(); ++i) times.push_back(marks[i].since(marks[i - 1]));
      return summary(std::move(times));
    };
    const double pilot = measure(2).median;
    return measure(std::clamp(static_cast<int>(kGpuSeconds / pilot), kFewestRuns, kMostGpuRuns));
  } else {
    return {};
  }
}

}  // namespace

Timing summary(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back(), static_cast<int>(times.size())};
}

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

std::string Bench::machine() const {
  if constexpr (kHasCuda)
    if (on_gpu()) return cuda::describe(device());
  return processor();
}

bool Bench::wanted(const std::string& name, const std::string& shape) const {
  return text(name, " ", shape).find(options_.filter) != std::string::npos;
}

void Bench::add(Row row) {
  const double recorded = on_gpu() ? recorded_seconds(row.name, row.shape) : 0;
  if (recorded > 0) {
    row.rival = row.rate * row.timing.median / recorded;
    row.rival_name = std::string(kRecordedName);
  }
  if (!options_.quiet) std::printf("%s\n", table_row(row).c_str()), std::fflush(stdout);
  rows_.push_back(std::move(row));
}

void Bench::check(const Tensor& found, const Tensor& expected, double tolerance, const std::string& what) const {
  const Tensor a = exact_copy(found), b = exact_copy(expected);
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

Tensor Bench::random_in(DType dtype, const std::string& stream, const Shape& shape, double low, double high) const {
  if (!on_gpu()) return bench::random(stream, shape, low, high).to(dtype);
  // Not a multiple of any row's length, so that rows differ.
  const int64_t count = shape.count(), drawn = std::min<int64_t>(count, (1 << 20) + 7);
  const Tensor all = Tensor::empty({count}, dtype, device());
  all.rows(0, drawn).copy_from(bench::random(stream, {drawn}, low, high));
  for (int64_t have = drawn; have < count; have *= 2) {
    const int64_t more = std::min(have, count - have);
    all.rows(have, have + more).copy_from(all.rows(0, more));
  }
  return all.reshape(shape);
}

Tensor Bench::random(const std::string& stream, const Shape& shape, double low, double high) const {
  return random_in(dtype(), stream, shape, low, high);
}

Tensor Bench::random_f32(const std::string& stream, const Shape& shape, double low, double high) const {
  return random_in(DType::f32, stream, shape, low, high);
}

Timing Bench::time(const std::function<void()>& f, int64_t calls) const {
  Timing timing = on_gpu() ? time_on_gpu(device(), f) : bench::time(f);
  const auto count = static_cast<double>(calls);
  timing.median /= count, timing.fastest /= count, timing.slowest /= count;
  return timing;
}

int64_t Bench::calls_past_cache(double bytes) const {
  return on_gpu() ? static_cast<int64_t>(std::ceil(kPastCache / bytes)) : 1;
}

double Bench::bandwidth() {
  if (bandwidth_ > 0) return bandwidth_;
  Row row{.group = "machine", .unit = "GB/s"};
  if (on_gpu()) {
    const Shape shape = {int64_t{1} << 30};
    const Tensor from = random_f32("copied", shape), to = empty_f32(shape);
    row.name = "copy", row.shape = "4 GiB";
    row.timing = time([&] { to.copy_from(from); });
    bandwidth_ = 2 * static_cast<double>(from.bytes()) / row.timing.median;
  } else {
    const MemoryReader reader(threads_);
    row.name = "read memory", row.shape = "512 MiB";
    row.timing = bench::time([&] { reader.read(); });
    bandwidth_ = reader.bytes() / row.timing.median;
  }
  row.rate = bandwidth_ / 1e9;
  add(std::move(row));
  return bandwidth_;
}

double Bench::products() {
  if (products_ > 0) return products_;
  require(on_gpu(), "the rate of products is a GPU's limit");
  constexpr int64_t kSize = 8192;
  const Shape shape = {kSize, kSize};
  const auto operand = [&](const char* name) { return random_in(DType::bf16, name, shape, -1, 1); };
  const LinearForward product{
      .x = operand("a"), .weight = operand("b"), .bias = {}, .y = Tensor::empty(shape, DType::bf16, device())};
  const Timing timing = time([&] { SSM_RUN(device(), threads_, linear_forward, product); });
  products_ = 2.0 * kSize * kSize * kSize / timing.median;
  add({.group = "machine",
       .name = "product bf16",
       .shape = text(kSize, " x ", kSize, " x ", kSize),
       .timing = timing,
       .rate = products_ / 1e12,
       .unit = "TFLOP/s"});
  return products_;
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

Tensor exact_copy(const Tensor& tensor) { return tensor ? tensor.on(Device::cpu()).to(DType::f64).clone() : Tensor(); }

std::string table_header() {
  return format("%-8s %-26s %-26s %10s %8s %8s %9s %-11s %6s %-20s %s", "group", "what", "shape", "ms", "spread",
                "ps/elem", "rate", "unit", "share", "of", "rival");
}

std::string table_row(const Row& row) {
  const double spread = row.timing.median > 0 ? (row.timing.slowest - row.timing.fastest) / row.timing.median : 0;
  const std::string rival =
      row.rival > 0 ? format("%.2f x %s", row.rate / row.rival, row.rival_name.c_str()) : std::string();
  const std::string note = row.note.empty() ? row.note : (rival.empty() ? "" : "; ") + row.note;
  return format("%-8s %-26s %-26s %10s %7.0f%% %8s %9.4g %-11s %6s %-20s %s%s", row.group.c_str(), row.name.c_str(),
                row.shape.c_str(), milliseconds(row.timing.median).c_str(), 100 * spread, picoseconds(row).c_str(),
                row.rate, row.unit.c_str(), share(row.rate, row.limit).c_str(), row.limit_name.c_str(), rival.c_str(),
                note.c_str());
}

std::string csv(const Bench& bench, const std::string& note) {
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
  std::string out = text("# ", bench.machine(), "; ", bench.threads().count(), " threads; ", date,
                         note.empty() ? "" : "; ", note, "\n",
                         "group,what,shape,median_ms,fastest_ms,slowest_ms,runs,rate,unit,limit,limit_name,rival,"
                         "rival_name,ps_an_element,note\n");
  for (const Row& row : bench.rows())
    out += text(row.group, ",", row.name, ",\"", row.shape, "\",", milliseconds(row.timing.median), ",",
                milliseconds(row.timing.fastest), ",", milliseconds(row.timing.slowest), ",", row.timing.runs, ",",
                row.rate, ",", row.unit, ",", row.limit, ",", row.limit_name, ",", row.rival, ",\"", row.rival_name,
                "\",", picoseconds(row), ",\"", row.note, "\"\n");
  return out;
}

}  // namespace ssm::bench
