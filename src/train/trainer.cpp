// Forward, backward, update; the equations are the ops'.
#include "train/trainer.h"

#include <algorithm>
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
  const int64_t parts = state_.config.accumulate;
  const std::vector<double> seed = {1.0 / static_cast<double>(parts)};
  seed_ = Tensor::of(seed).to(accumulator_of(model.params().dtype())).on(ctx_.device);
  if constexpr (kHasCuda)
    if (ctx_.device.is_cuda())
      gpu_ = std::make_shared<GpuSteps>(
          ctx_.device, parts, model.config().padded_vocab(),
          [this](int64_t part, const Tensor& ids, const Targets& targets, const Seqs& seqs) {
            return differentiate(part, ids, targets, seqs);
          },
          state_.config.cuda_graph == "off" ? GpuSteps::Graphs::never : GpuSteps::Graphs::when_it_pays);
}

TokenBatch Trainer::batch_of(int64_t number) {
  if (drawn_ && drawn_->first == number) return std::exchange(drawn_, std::nullopt)->second;
  return data_.batch(number);
}

// Forward and backward of one micro-batch; the loss.
Tensor Trainer::differentiate(int64_t part, const Tensor& ids, const Targets& targets, const Seqs& seqs) {
  if (part == 0) model_.params().forget_gradients();
  // One tape a part: what the part saved is gone before the next one begins.
  Tape tape;
  model_.params().mark_on(tape);
  Ctx ctx = ctx_;
  ctx.tape = &tape;
  const Var mean = model_.lm().loss(ctx, ids, targets, seqs);
  saved_bytes_ = tape.report();
  tape.backward(std::vector<std::pair<Var, Tensor>>{{mean, seed_}});
  return mean.value;
}

void Trainer::begin() {
  Begun next{.result = {.step = state_.step + static_cast<int64_t>(begun_.size()) + 1}, .begin = Clock::now()};
  next.result.lr = learning_rate(state_.config.rate, next.result.step);
  gpu_ ? queue(next.result) : compute(next.result);
  begun_.push_back(next);
}

void Trainer::compute(StepResult& step) {
  const int64_t parts = state_.config.accumulate, vocab = model_.config().padded_vocab();
  for (int64_t i = 0; i < parts; ++i) {
    const TokenBatch batch = batch_of((step.step - 1) * parts + i);
    const Targets targets = check_targets("training", batch.targets, vocab);
    const Tensor loss = differentiate(i, batch.inputs, targets, Seqs::dense(batch.sequences, batch.length));
    step.loss += number(loss) / static_cast<double>(parts);
    step.tokens += batch.inputs.count();
  }
  if (!std::isfinite(step.loss)) explain_loss(step);
  step.grad_norm = optimizer_.update(ctx_, state_.config.optimizer, step.lr, state_.config.rate.lr, step.step);
}

void Trainer::queue(StepResult& step) {
  if constexpr (kHasCuda) {
    const int64_t parts = state_.config.accumulate;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t number = (step.step - 1) * parts + i;
      const TokenBatch batch = batch_of(number);
      gpu_->queue(i, batch);
      step.tokens += batch.inputs.count();
      if (i + 1 < parts) draw_after(number);
    }
    norm_ = optimizer_.queue_update(ctx_, state_.config.optimizer, step.lr, state_.config.rate.lr, step.step,
                                    {.losses = gpu_->losses(), .norm = norm_});
    gpu_->end(norm_);
    draw_after(step.step * parts - 1);
  }
}

// While the GPU works, the next batch is drawn.
void Trainer::draw_after(int64_t batch) {
  const int64_t last = state_.config.rate.steps * state_.config.accumulate - 1;
  if (batch < last) drawn_ = {batch + 1, data_.batch(batch + 1)};
}

void Trainer::take_numbers(StepResult& step) {
  if constexpr (kHasCuda) {
    const GpuSteps::Numbers numbers = gpu_->take();
    step.loss = numbers.loss;
    step.grad_norm = numbers.norm;
    if (std::isfinite(numbers.loss) && std::isfinite(numbers.norm)) return;
    // No update was made from this step on, so its gradients, if those of the next one have taken their place, can be
    // made again.
    norm_ = {};
    if (begun_.empty()) return;
    for (; !begun_.empty(); begun_.pop_front()) gpu_->take();
    const int64_t parts = state_.config.accumulate;
    for (int64_t i = 0; i < parts; ++i) gpu_->queue(i, data_.batch((step.step - 1) * parts + i));
  }
}

StepResult Trainer::finish() {
  Begun one = begun_.front();
  begun_.pop_front();
  StepResult& result = one.result;
  if (gpu_) take_numbers(result);
  if (!std::isfinite(result.loss)) explain_loss(result);
  if (!std::isfinite(result.grad_norm)) throw optimizer_.not_finite(result.step);
  const Clock::time_point now = Clock::now();
  result.seconds = std::chrono::duration<double>(now - std::max(one.begin, finished_)).count();
  finished_ = now;
  state_.step = result.step;
  state_.tokens += result.tokens;
  return result;
}

StepResult Trainer::step(Ahead ahead) {
  if (begun_.empty()) begin();
  const bool more = begun_.back().result.step < state_.config.rate.steps;
  if (gpu_ && ahead == Ahead::yes && more) begin();
  return finish();
}

// Says which parameter is to blame, where one is: one that is no number itself, or the first whose gradient is none.
void Trainer::explain_loss(const StepResult& step) const {
  const std::string what = text("step ", step.step, ": the loss is ", step.loss, "; ");
  const std::string advice = "; nothing was updated. A smaller --lr or --clip, or a longer --warmup, may help";
  for (const auto& param : model_.params().all())
    if (first_not_finite(param->var.value.to(accumulator_of(param->var.value.dtype())).on(Device::cpu())))
      throw Error(what, "parameter ", param->name, " is NaN or infinite", advice);
  for (const auto& param : model_.params().all())
    if (param->var.grad->written && first_not_finite(param->var.grad->value.on(Device::cpu())))
      throw Error(what, "all parameters are finite, the gradient of ", param->name, " is not", advice);
  throw Error(what, "parameters and gradients are finite", advice);
}

int64_t Trainer::recorded_kernels() const {
  if constexpr (kHasCuda)
    if (gpu_) return gpu_->kernels();
  return 0;
}

std::string Trainer::why_not_recorded() const {
  if constexpr (kHasCuda)
    if (gpu_) return gpu_->why_no_graph();
  return "";
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
