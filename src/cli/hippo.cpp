// `ssm hippo`: the matrices from which structured state space models start, and what a state made by them remembers.
#include <algorithm>
#include <cmath>
#include <iomanip>
#include <sstream>

#include "cli/arrays.h"
#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/signal_plot.h"
#include "cli/terminal.h"
#include "formats/npy.h"
#include "lti/hippo.h"
#include "lti/memory.h"

namespace ssm::cli {
namespace {

constexpr int64_t kMaxStates = 4096;   // eigenvectors of that many take minutes and a gigabyte
constexpr int64_t kMaxPlotted = 1024;  // the window's exponential takes seconds
constexpr int64_t kMaxSamples = int64_t{1} << 26;
constexpr double kMaxValue = 1e100;  // squares of it can be added up
constexpr double kFaded = 5;         // of LegS with a window: windows drawn; a sample older counts < 1 %

class HippoCommand : public Command {
 public:
  std::string name() const override { return "hippo"; }
  std::string summary() const override { return "HiPPO matrices, and a drawing of what their state remembers"; }
  std::string example() const override { return "ssm hippo --signal u.npy --plot memory.svg"; }

  Fields fields() override {
    return {
        {"measure", &measure_, "legs, legt or fout; with --out also diag-lin, -inv, -inv2, -quad, -real or -legs"},
        {"n", &n_, "numbers in a state, for --out"},
        {"out", &out_, "a new directory for the matrices: A, B and P, with modes: Lambda, B, P, V (real, imaginary)"},
        {"signal", &signal_, "a signal to remember, (t) in a .npy file"},
        {"plot", &plot_, "an .svg of the signal and of what states of several sizes remember"},
        {"sizes", &sizes_, "numbers in the states drawn (4 16 64 unless given)"},
        {"window", &window_, "samples that legt and fout keep, in which legs fades by e; 0: half; all with legs"}};
  }

  int run(const Invocation& invocation) override {
    require_usage(signal_.empty() == plot_.empty(),
                  "--signal and --plot go together: ", plot_.empty() ? "--plot" : "--signal", " is missing");
    require_usage(!out_.empty() || !plot_.empty(),
                  "nothing to do; give --out DIR for matrices, or --signal F and --plot F");
    require_usage(out_.empty() || plot_.empty(), "--out and --plot are two things; give one of them");
    const auto measure = measure_named(measure_);
    if (!out_.empty()) {
      require_usage(invocation.has("n"), "--out needs --n N, the number of states");
      for (const char* other : {"sizes", "window"})
        require_usage(!invocation.has(other), flag_of(other), " is for --plot");
      require_range("--n", n_, 1, kMaxStates);
      return write_matrices(measure, invocation);
    }
    require_usage(!invocation.has("n"), "--n is for --out; with --plot give --sizes N...");
    require_usage(measure.has_value(), "--measure is \"", measure_, "\", expected legs, legt or fout with --plot");
    return draw(*measure, invocation);
  }

 private:
  // Matrices
  // ------------------------------------------------------------------------------------------------------------

  static Tensor real(const std::vector<double>& values, const Shape& shape) {
    return Tensor::of(std::span<const double>(values), shape);
  }

  // (..., 2): real and imaginary part, as published checkpoints store complex numbers.
  static Tensor complex(const std::vector<std::complex<double>>& values, const Shape& shape) {
    std::vector<double> parts;
    for (const std::complex<double>& value : values) {
      parts.push_back(value.real());
      parts.push_back(value.imag());
    }
    return Tensor::of(std::span<const double>(parts), shape);
  }

  int write_matrices(std::optional<Measure> measure, const Invocation& invocation) const {
    std::vector<std::pair<std::string, Tensor>> arrays;
    if (measure) {
      const Hippo system = hippo(*measure, n_);
      const Dplr modes = diagonal_plus_low_rank(*measure, n_);
      arrays = {{"A", real(system.A, {n_, n_})},           {"B", real(system.B, {n_})},
                {"P", real(system.P, {system.rank, n_})},  {"modes_Lambda", complex(modes.Lambda, {n_, 2})},
                {"modes_B", complex(modes.B, {n_, 2})},    {"modes_P", complex(modes.P, {modes.rank, n_, 2})},
                {"modes_V", complex(modes.V, {n_, n_, 2})}};
    } else {
      const bool known = std::find(kDiagonalStarts.begin(), kDiagonalStarts.end(), measure_) != kDiagonalStarts.end();
      require_usage(known, "--measure is \"", measure_,
                    "\", expected legs, legt, fout, diag-lin, diag-inv, diag-inv2, diag-quad, diag-real or diag-legs");
      const DiagonalModes start = diagonal_modes(measure_, n_);
      std::vector<std::complex<double>> Lambda, B;
      for (size_t k = 0; k < start.decay.size(); ++k) {
        Lambda.emplace_back(-start.decay[k], -start.frequency[k]);
        B.emplace_back(start.B[k]);
      }
      const auto count = static_cast<int64_t>(Lambda.size());
      arrays = {{"modes_Lambda", complex(Lambda, {count, 2})}, {"modes_B", complex(B, {count, 2})}};
    }
    write_directory(out_, [&](const Path& folder) {
      for (const auto& [name, array] : arrays) write_npy(folder / (name + ".npy"), array);
    });
    Json shapes = Json::object();
    std::string list;
    for (const auto& [name, array] : arrays) {
      shapes[name] = std::vector<int64_t>(array.shape().begin(), array.shape().end());
      list += text(list.empty() ? "" : ", ", name, " ", array.shape());
    }
    if (invocation.common.json)
      print(json_line({{"measure", measure_}, {"n", n_}, {"out", out_}, {"arrays", shapes}}));
    else
      note(text(out_, ": ", list), invocation.common.quiet);
    return 0;
  }

  // Memory
  // --------------------------------------------------------------------------------------------------------------

  int draw(Measure measure, const Invocation& invocation) {
    if (!invocation.has("sizes")) sizes_ = {4, 16, 64};
    require_usage(sizes_.size() <= 12, "--sizes has ", sizes_.size(), " numbers, expected at most 12");
    for (const int64_t size : sizes_) require_range("--sizes", size, 1, kMaxPlotted);
    require_range("--window", window_, 0, kMaxSamples);
    require_can_write(plot_);
    const Tensor numbers = read_numbers(signal_);
    require(numbers.rank() == 1 && 2 <= numbers.count() && numbers.count() <= kMaxSamples, signal_, ": the signal is ",
            numbers.shape(), ", expected (t) with 2 to ", kMaxSamples, " samples");
    const std::span<const double> signal = numbers.span<double>();
    for (const double value : signal)
      require(std::abs(value) <= kMaxValue, signal_, " has the value ", value, ", expected at most ", kMaxValue,
              " either side of 0");
    const int64_t samples = numbers.count();
    const bool fades = measure == Measure::legs;
    double window = static_cast<double>(window_);
    if (window_ == 0 && !fades) window = static_cast<double>(samples) / 2;
    int64_t count = samples;  // drawn
    if (window > 0) count = std::min<int64_t>(samples, std::llround(fades ? kFaded * window : window));

    SignalPlot plot{.title = "What a state remembers: HiPPO-" + title_of(measure),
                    .subtitle = subtitle_of(measure, samples, window, count),
                    .under = "the signal",
                    .over = "from the state",
                    .samples = samples};
    std::vector<std::vector<double>> recalled(sizes_.size());
    std::vector<double> errors;
    Progress progress(invocation.common.quiet);
    for (size_t i = 0; i < sizes_.size(); ++i) {
      progress.show(text("a state of ", numbers_of(sizes_[i])));
      const Memory memory{.measure = measure, .n = sizes_[i], .window = window};
      recalled[i] = recall(memory, remember(memory, signal, stop_if_interrupted), samples, count);
      errors.push_back(error_of(signal.last(static_cast<size_t>(count)), recalled[i], fades ? window : 0));
      plot.panels.push_back({numbers_of(sizes_[i]), "error " + percent(errors[i]), signal, recalled[i]});
    }
    progress.done();
    write_file(plot_, svg_of(plot));
    report(samples, window, errors, invocation.common.json);
    return 0;
  }

  // Root mean square of the difference over the signal's standard deviation, each sample with its weight.
  static double error_of(std::span<const double> signal, const std::vector<double>& recalled, double fading) {
    double weights = 0, mean = 0, spread = 0, error = 0;
    const auto weight = [&](size_t i) {
      return fading == 0 ? 1.0 : std::exp(-(static_cast<double>(signal.size() - i) - 0.5) / fading);
    };
    for (size_t i = 0; i < signal.size(); ++i) {
      weights += weight(i);
      mean += weight(i) * signal[i];
    }
    mean /= weights;
    for (size_t i = 0; i < signal.size(); ++i) {
      spread += weight(i) * (signal[i] - mean) * (signal[i] - mean);
      error += weight(i) * (recalled[i] - signal[i]) * (recalled[i] - signal[i]);
    }
    return std::sqrt(spread > 0 ? error / spread : error / weights);
  }

  static std::string title_of(Measure measure) {
    if (measure == Measure::fout) return "FouT";
    return measure == Measure::legs ? "LegS" : "LegT";
  }

  static std::string subtitle_of(Measure measure, int64_t samples, double window, int64_t count) {
    const std::string past = text(samples, " samples, read once; ");
    if (measure != Measure::legs) return past + text("the last ", count, " are kept");
    if (window == 0) return past + "the whole past counts alike";
    return past + text("what is ", window, " samples older counts e times less");
  }

  static std::string numbers_of(int64_t n) { return text(n, n == 1 ? " number" : " numbers"); }

  static std::string percent(double share) {
    std::ostringstream out;
    out << std::setprecision(3) << 100 * share << " %";
    return out.str();
  }

  void report(int64_t samples, double window, const std::vector<double>& errors, bool json) const {
    Json states = Json::array();
    std::string lines;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      states.push_back({{"n", sizes_[i]}, {"error", errors[i]}});
      lines += text(std::setw(6), sizes_[i], sizes_[i] == 1 ? " number   " : " numbers  ", "error ", percent(errors[i]),
                    "\n");
    }
    const Json all = {
        {"measure", measure_}, {"samples", samples}, {"window", window}, {"plot", plot_}, {"states", states}};
    print(json ? json_line(all) : lines);
  }

  std::string measure_ = "legs", out_, signal_, plot_;
  std::vector<int64_t> sizes_;
  int64_t n_ = 64, window_ = 0;
};

}  // namespace

std::unique_ptr<Command> make_hippo() { return std::make_unique<HippoCommand>(); }

}  // namespace ssm::cli
