// `ssm gradients`: one backward pass, for scripts and comparisons with other programs.
#include <cmath>
#include <cstdio>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "formats/npy.h"
#include "formats/safetensors.h"

namespace ssm::cli {
namespace {

class Gradients : public Command {
 public:
  std::string name() const override { return "gradients"; }
  std::string summary() const override { return "one backward pass: loss and gradients, for scripts and comparisons"; }
  std::string example() const override {
    return "ssm gradients --model runs/shakespeare --ids batch.npy --out gradients.safetensors";
  }

  Fields fields() override {
    return {{.name = "model", .target = &model_, .help = "a model's directory or weights file", .required = true},
            {.name = "ids",
             .target = &ids_,
             .help = "(s, t + 1) integers in a .npy file: t inputs and, one further, t targets",
             .required = true},
            {.name = "out",
             .target = &out_,
             .help = "gradients of the mean loss under the parameters' names, as safetensors",
             .required = true}};
  }

  int run(const Invocation& invocation) override {
    require_can_write(out_);
    ModelOptions options = model_options(invocation.common);
    options.trainable = true;
    options.as_stored = false;
    const auto model = Model::open(model_, options);
    const Tensor ids = read_ids(ids_, model->config().vocab_size);  // (s, t + 1) or (t + 1)
    require(ids.count() > 0 && ids.size(-1) >= 2, ids_, " has shape ", ids.shape(),
            ", expected (s, t + 1) with at least one input and its target");
    const int64_t length = ids.size(-1) - 1, count = ids.count() / (length + 1);
    const Tensor rows = ids.reshape({count, length + 1});

    Threads threads(static_cast<int>(invocation.common.threads));
    Tape tape;
    const Ctx ctx{.device = options.device, .threads = &threads, .tape = &tape};
    const Var loss =
        model->lm().loss(ctx, rows.columns(0, length).clone().reshape({count * length}),
                         rows.columns(1, length + 1).clone().reshape({count * length}), Seqs::dense(count, length));
    const double value = loss.value.on(Device::cpu()).to(DType::f64).item<double>();
    stop_if_interrupted();
    tape.backward(loss);

    NamedTensors gradients;
    double squares = 0;
    for (const auto& param : model->params().all()) {
      const GradPtr& grad = param->var.grad;
      const Tensor gradient =
          grad->written ? grad->value.on(Device::cpu()) : Tensor::zeros(grad->shape, grad->dtype);
      for (const double g : gradient.to(DType::f64).span<double>()) squares += g * g;
      gradients.emplace_back(param->name, gradient);
    }
    write_safetensors(out_, gradients);
    report(value, std::sqrt(squares), invocation.common.json);
    return 0;
  }

 private:
  static void report(double loss, double norm, bool json) {
    if (json) {
      print(json_line({{"loss", loss}, {"grad_norm", norm}}));
      return;
    }
    char lines[96];
    std::snprintf(lines, sizeof lines, "loss       %.9g\ngrad_norm  %.9g\n", loss, norm);
    print(lines);
  }

  std::string model_, ids_, out_;
};

}  // namespace

std::unique_ptr<Command> make_gradients() { return std::make_unique<Gradients>(); }

}  // namespace ssm::cli
