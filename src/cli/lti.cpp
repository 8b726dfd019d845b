// `ssm lti`: a continuous linear system, cut into steps and run over an input in one of its three views.
#include <algorithm>
#include <cmath>

#include "cli/arrays.h"
#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/signal_plot.h"
#include "cli/terminal.h"
#include "formats/npy.h"
#include "lti/linear_system.h"

namespace ssm::cli {
namespace {

constexpr int64_t kMaxStates = 4096;               // an exponential of that size takes minutes and a gigabyte
constexpr int64_t kMaxNumbers = int64_t{1} << 27;  // held by a view: 1 GiB
constexpr int64_t kBlock = 4096;                   // tokens of a recurrence between two looks at Ctrl-C

class Lti : public Command {
 public:
  std::string name() const override { return "lti"; }
  std::string summary() const override { return "a linear system x' = Ax + Bu: discretised, and run in three views"; }
  std::string example() const override {
    return "ssm lti --A A.npy --B B.npy --C C.npy --dt 0.01 --input u.npy --view scan --out y.npy";
  }

  Fields fields() override {
    return {
        {.name = "A", .target = &a_, .help = "(n, n) in a .npy file", .required = true},
        {.name = "B", .target = &b_, .help = "(n) or (n, inputs)", .required = true},
        {.name = "C", .target = &c_, .help = "(n) or (outputs, n)", .required = true},
        {"D", &d_, "one number or (outputs, inputs); left out: zero"},
        {.name = "dt", .target = &dt_, .help = "the step, in the time of A", .required = true},
        {"method", &method_, "zoh, bilinear, euler, backward-euler, or generalized-bilinear with --alpha"},
        {"alpha", &alpha_, "of generalized-bilinear: 0 is euler, 0.5 bilinear, 1 backward-euler"},
        {"input", &input_, "u, (t) or (t, inputs) in a .npy file"},
        {"view", &view_, "recurrence, convolution or scan: the same y by three algorithms"},
        {"out", &out_, "y as f64 .npy: (t), or (t, outputs) if there are several"},
        {"plot", &plot_, "an .svg of the first input, of the first output beside the exact one, and of K"},
        {"discretized", &discretized_, "a new directory for A.npy and B.npy after discretisation, C.npy and D.npy"}};
  }

  int run(const Invocation& invocation) override {
    const Discretization method = chosen_method(invocation);
    require_usage(dt_ > 0, "--dt is ", dt_, ", expected a positive number");
    require_usage(view_ == "recurrence" || view_ == "convolution" || view_ == "scan", "--view is \"", view_,
                  "\", expected recurrence, convolution or scan");
    const bool runs = !out_.empty() || !plot_.empty();
    require_usage(runs || input_.empty(), "--input goes with --out F or --plot F");
    require_usage(!runs || !input_.empty(), out_.empty() ? "--plot" : "--out", " needs --input F");
    require_usage(runs || !discretized_.empty(),
                  "nothing to do; give --input F with --out F or --plot F, or --discretized DIR, or all");
    for (const std::string& file : {out_, plot_})
      if (!file.empty()) require_can_write(file);
    const LinearSystem continuous = read_system();
    const Tensor u = runs ? read_input(continuous) : Tensor();
    const LinearSystem discrete = discretize(continuous, dt_, method);
    const Tensor y = runs ? output(discrete, u) : Tensor();
    const std::string svg = plot_.empty() ? "" : drawing(continuous, discrete, method, u, y);
    if (!discretized_.empty()) write_system(discrete);
    if (!out_.empty()) write_npy(out_, y);
    if (!plot_.empty()) write_file(plot_, svg);

    const int64_t t = runs ? u.size(0) : 0;
    if (invocation.common.json)
      print(json_line({{"states", discrete.n},
                       {"inputs", discrete.inputs},
                       {"outputs", discrete.outputs},
                       {"method", method.name},
                       {"dt", dt_},
                       {"view", view_},
                       {"tokens", t},
                       {"out", out_},
                       {"plot", plot_},
                       {"discretized", discretized_}}));
    return 0;
  }

 private:
  Discretization chosen_method(const Invocation& invocation) const {
    const bool generalized = method_ == "generalized-bilinear";
    require_usage(generalized == invocation.has("alpha"), generalized ? "--method generalized-bilinear needs --alpha"
                                                                      : "--alpha is for --method generalized-bilinear");
    require_range("--alpha", alpha_, 0, 1);
    if (generalized) return Discretization::generalized_bilinear(alpha_);
    for (const Discretization& known : {Discretization::zero_order_hold(), Discretization::bilinear(),
                                        Discretization::euler(), Discretization::backward_euler()})
      if (known.name == method_) return known;
    throw UsageError("--method is \"", method_,
                     "\", expected zoh, bilinear, euler, backward-euler or generalized-bilinear");
  }

  static std::vector<double> values(const Tensor& tensor) {
    const auto all = tensor.span<double>();
    return {all.begin(), all.end()};
  }

  LinearSystem read_system() const {
    const Tensor A = read_numbers(a_), B = read_numbers(b_), C = read_numbers(c_);
    require(A.rank() == 2 && A.size(0) == A.size(1) && A.size(0) > 0, a_, ": A is ", A.shape(),
            ", expected a square matrix, (n, n)");
    const int64_t n = A.size(0);
    require(n <= kMaxStates, a_, ": A has ", n, " states, expected at most ", kMaxStates);
    require((B.rank() == 1 || B.rank() == 2) && B.size(0) == n && B.count() > 0, b_, ": B is ", B.shape(),
            ", expected (n) or (n, inputs) with A's n, ", n);
    require((C.rank() == 1 || C.rank() == 2) && C.size(-1) == n && C.count() > 0, c_, ": C is ", C.shape(),
            ", expected (n) or (outputs, n) with A's n, ", n);
    LinearSystem system{.n = n, .inputs = B.count() / n, .outputs = C.count() / n};
    require(system.inputs <= kMaxStates, b_, ": B has ", system.inputs, " inputs, expected at most ", kMaxStates);
    require(system.outputs <= kMaxStates, c_, ": C has ", system.outputs, " outputs, expected at most ", kMaxStates);
    system.A = values(A);
    system.B = values(B);
    system.C = values(C);
    const int64_t direct = system.outputs * system.inputs;
    system.D.resize(static_cast<size_t>(direct));
    if (d_.empty()) return system;
    const Tensor D = read_numbers(d_);
    const bool fits = D.rank() == 2 ? D.size(0) == system.outputs && D.size(1) == system.inputs
                                    : D.rank() < 2 && D.count() == direct && direct == 1;
    require(fits, d_, ": D is ", D.shape(), ", expected ", Shape{system.outputs, system.inputs},
            ", as B and C have it");
    system.D = values(D);
    return system;
  }

  Tensor read_input(const LinearSystem& system) const {
    const Tensor u = read_numbers(input_);
    const bool fits = u.rank() == 2 ? u.size(1) == system.inputs : u.rank() == 1 && system.inputs == 1;
    require(fits, input_, ": the input is ", u.shape(), ", expected ", system.inputs == 1 ? "(t) or " : "", "(t, ",
            system.inputs, ")");
    // What a view holds beside its input: states, or the kernel, or the outputs, whichever is most.
    const int64_t t = u.size(0);
    int64_t per_token = std::max(system.outputs, system.n);
    if (view_ == "convolution") per_token = system.outputs * system.inputs + 4 * system.inputs + 8;
    require(t <= kMaxNumbers / per_token, input_, ": ", t, " tokens are too many for the view ", view_,
            " of this system, which would hold ", per_token, " numbers for each; expected at most ",
            kMaxNumbers / per_token, view_ == "recurrence" ? "" : " (--view recurrence may take more)");
    return u;
  }

  Tensor output(const LinearSystem& discrete, const Tensor& u) const {
    const std::span<const double> all = u.span<double>();
    const int64_t t = u.size(0);
    std::vector<double> y;
    if (view_ == "convolution") {
      y = run_convolution(discrete, all);
    } else if (view_ == "scan") {
      y = run_scan(discrete, all);
    } else {
      std::vector<double> state(static_cast<size_t>(discrete.n));
      const auto step = static_cast<size_t>(kBlock * discrete.inputs);
      for (size_t begin = 0; begin < all.size(); begin += step) {
        stop_if_interrupted();
        const std::vector<double> part =
            run_recurrence(discrete, all.subspan(begin, std::min(step, all.size() - begin)), state);
        y.insert(y.end(), part.begin(), part.end());
      }
    }
    stop_if_interrupted();
    const auto bad = std::find_if(y.begin(), y.end(), [](double value) { return !std::isfinite(value); });
    require(bad == y.end(), "the output is not finite from token ", (bad - y.begin()) / discrete.outputs,
            " on: the system with ", method_, " and dt ", dt_, " is unstable (a smaller dt, zoh or bilinear may help)");
    return Tensor::of(std::span<const double>(y), discrete.outputs == 1 ? Shape{t} : Shape{t, discrete.outputs});
  }

  // A channel of (t, channels), or of (t).
  static std::vector<double> first_channel(const Tensor& signal) {
    const std::span<const double> all = signal.span<double>();
    const auto channels = static_cast<size_t>(signal.rank() == 1 ? 1 : signal.size(1));
    std::vector<double> channel;
    for (size_t i = 0; i < all.size(); i += channels) channel.push_back(all[i]);
    return channel;
  }

  std::string drawing(const LinearSystem& continuous, const LinearSystem& discrete, const Discretization& method,
                      const Tensor& u, const Tensor& y) const {
    const int64_t t = u.size(0);
    require(t >= 2, input_, ": the input is ", u.shape(), ", expected at least two tokens to draw");
    const int64_t size = discrete.outputs * discrete.inputs;
    require(t <= kMaxNumbers / size, input_, ": ", t,
            " tokens are too many to draw the kernel of this system; expected ", "at most ", kMaxNumbers / size);
    const std::vector<double> input = first_channel(u), found = first_channel(y);
    std::vector<double> exact;
    if (!method.exact) exact = first_channel(output(discretize(continuous, dt_, Discretization::zero_order_hold()), u));
    const std::vector<double> kernels = convolution_kernel(discrete, t);
    std::vector<double> K;
    for (int64_t l = 0; l < t; ++l) K.push_back(kernels[static_cast<size_t>(l * size)]);
    require(std::all_of(K.begin(), K.end(), [](double value) { return std::isfinite(value); }),
            "the kernel is not finite: the system with ", method_, " and dt ", dt_, " is unstable");
    const SignalPlot plot{.title = text("A linear system of ", discrete.n, discrete.n == 1 ? " state" : " states"),
                          .subtitle = text(t, " steps of ", dt_, ", ", method.name),
                          .under = method.exact ? "input" : "input; exact output",
                          .over = method.name,
                          .samples = t,
                          .panels = {{"input u", "", input, {}},
                                     {"output y = K * u + D u", "", exact, found},
                                     {"kernel K = (CB, CAB, CAAB, ...)", "", {}, K}}};
    return svg_of(plot);
  }

  void write_system(const LinearSystem& system) const {
    const int64_t n = system.n, inputs = system.inputs, outputs = system.outputs;
    write_directory(discretized_, [&](const Path& folder) {
      const auto write = [&](const char* file, const std::vector<double>& matrix, const Shape& shape) {
        write_npy(folder / file, Tensor::of(std::span<const double>(matrix), shape));
      };
      write("A.npy", system.A, {n, n});
      write("B.npy", system.B, {n, inputs});
      write("C.npy", system.C, {outputs, n});
      write("D.npy", system.D, {outputs, inputs});
    });
  }

  std::string a_, b_, c_, d_, input_, out_, plot_, discretized_, method_ = "zoh", view_ = "recurrence";
  double dt_ = 0, alpha_ = 0.5;
};

}  // namespace

std::unique_ptr<Command> make_lti() { return std::make_unique<Lti>(); }

}  // namespace ssm::cli
