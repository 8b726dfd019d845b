// Forward, backward, update; the equations are the ops'.
#include "train/trainer.h"

#include <chrono>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "ops/adamw/adamw.h"

namespace ssm {
namespace {

double number(const Tensor& one) { return one.on(Device::cpu()).to(DType::f64).item<double>(); }

double sum(const Tensor& values) {
  const Tensor exact = values.on(Device::cpu()).to(DType::f64);
  double total = 0;
  for (const double value : exact.span<double>()) total += value;
  return total;
}

}  // namespace

std::string StepResult::json() const {
  StepResult copy = *this;  // a list of fields points into what may be written to
  double evaluated = eval_loss.value_or(0);
  Fields fields = {{"step", &copy.step, ""}, {"loss", &copy.loss, ""},     {"grad_norm", &copy.grad_norm, ""},
                   {"lr", &copy.lr, ""},     {"tokens", &copy.tokens, ""}, {"seconds", &copy.seconds, ""}};
  if (eval_loss) fields.push_back({"eval_loss", &evaluated, ""});
  return write_json(fields, 0);
}

Trainer::Trainer(Model& model, const Dataset& data, Threads& threads, TrainingState start)
    : model_(model),
      data_(data),
      ctx_{.device = model.options().device,
           .threads = &threads,
           .recompute = start.config.recompute ? Recompute::blocks : Recompute::cheap},
      optimizer_(model.params()),
      state_(std::move(start)) {
  require(model.options().trainable, "the model was not opened for training");
}

TokenBatch Trainer::batch_of(int64_t number) {
  if (drawn_ && drawn_->first == number) return std::exchange(drawn_, std::nullopt)->second;
  return data_.batch(number);
}

double Trainer::accumulate_gradients() {
  const int64_t parts = state_.config.accumulate;
  model_.params().forget_gradients();
  double loss = 0;
  step_tokens_ = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const TokenBatch batch = batch_of(state_.step * parts + i);
    // One tape a part: what the part saved is gone before the next one begins.
    Tape tape;
    model_.params().mark_on(tape);
    Ctx ctx = ctx_;
    ctx.tape = &tape;
    const Var mean = model_.lm().loss(ctx, batch.inputs, batch.targets, Seqs::dense(batch.sequences, batch.length));
    saved_bytes_ = tape.report();
    tape.backward(mean, 1.0 / static_cast<double>(parts));
    // While a GPU works, the next batch is drawn: reading the loss waits for it.
    const int64_t last = state_.config.rate.steps * parts - 1, next = state_.step * parts + i + 1;
    if (ctx.device.is_cuda() && next <= last) drawn_ = {next, data_.batch(next)};
    loss += number(mean.value) / static_cast<double>(parts);
    step_tokens_ += batch.inputs.count();
  }
  return loss;
}

// Says which parameter is to blame, where one is: one that is no number itself, or the first whose gradient is none.
void Trainer::explain_loss(double loss) const {
  const std::string what = text("step ", state_.step + 1, ": the loss is ", loss, "; ");
  const std::string advice = "; nothing was updated. A smaller --lr or --clip, or a longer --warmup, may help";
  for (const auto& param : model_.params().all())
    if (first_not_finite(param->var.value.to(accumulator_of(param->var.value.dtype())).on(Device::cpu())))
      throw Error(what, "parameter ", param->name, " is NaN or infinite", advice);
  for (const auto& param : model_.params().all())
    if (param->var.grad->written && first_not_finite(param->var.grad->value.on(Device::cpu())))
      throw Error(what, "all parameters are finite, the gradient of ", param->name, " is not", advice);
  throw Error(what, "parameters and gradients are finite", advice);
}

StepResult Trainer::step() {
  const auto begin = std::chrono::steady_clock::now();
  StepResult result{.step = state_.step + 1, .lr = learning_rate(state_.config.rate, state_.step + 1)};
  result.loss = accumulate_gradients();
  if (!std::isfinite(result.loss)) explain_loss(result.loss);
  result.grad_norm = optimizer_.update(ctx_, state_.config.optimizer, result.lr, state_.config.rate.lr, result.step);
  result.tokens = step_tokens_;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  state_.step = result.step;
  state_.tokens += result.tokens;
  return result;
}

double Trainer::evaluate(const Dataset& held_back) const {
  double total = 0;
  int64_t targets = 0;
  for (int64_t i = 0; i < held_back.steps(); ++i) {
    const TokenBatch batch = held_back.batch(i);
    total +=
        sum(model_.lm().token_losses(ctx_, batch.inputs, batch.targets, Seqs::dense(batch.sequences, batch.length)));
    targets += batch.targets.count();
  }
  return total / static_cast<double>(targets);
}

}  // namespace ssm
