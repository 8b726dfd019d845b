#include "core/tape.h"

#include <algorithm>

namespace ssm {

const Tensor& Grad::storage() {
  if (!value) {
    if (whole)
      value = whole->storage().columns(first_column, first_column + shape[-1]);
    else
      value = Tensor::empty(shape, dtype, device);
  }
  return value;
}

GradOut::GradOut(const GradPtr& grad) : grad_(grad) {
  if (!grad) return;
  add_ = grad->written;
  out = add_ ? Tensor::empty(grad->shape, grad->dtype, grad->device) : grad->storage();
}

GradOut::~GradOut() {
  if (!grad_) return;
  if (add_) grad_->value.add(out);
  grad_->written = true;
}

GradInPlace write_in_place(const GradPtr& grad) {
  if (!grad) return {{}, false};
  const bool accumulate = grad->written;
  grad->written = true;
  return {grad->storage(), accumulate};
}

const Tensor& Backward::saved(std::string_view name) const {
  for (const Saved& one : saved_)
    if (one.name == name) return one.tensor;
  throw Error("this op saved no tensor named ", name);
}

const Tensor& Backward::grad(size_t output) const {
  Grad& grad = *outputs_[output];
  if (!grad.written) {
    grad.storage().fill_zero();
    grad.written = true;
  }
  return grad.value;
}

Tensor Backward::grad_if_any(size_t output) const {
  return outputs_[output] && outputs_[output]->written ? outputs_[output]->value : Tensor();
}

Var Tape::variable(Tensor value) const {
  auto grad = std::make_shared<Grad>();
  grad->shape = value.shape();
  grad->dtype = value.dtype();
  grad->device = value.device();
  return {std::move(value), std::move(grad)};
}

void Tape::record(const char* op, std::vector<Saved> saved, std::vector<GradPtr> outputs, BackwardFn backward) {
  SavedBytes& row = bytes_[op];
  row.op = op;
  ++row.nodes;
  for (const Saved& one : saved)
    if (one.tensor && counted_.insert(one.tensor.storage()).second) row.bytes += one.tensor.bytes();
  nodes_.push_back({op, std::move(saved), std::move(outputs), std::move(backward)});
  if (observer_) observer_(op, Pass::forward);
}

void Tape::backward(const Var& loss, double seed) {
  require(loss.value.count() == 1, "backward starts from one number, found shape ", loss.value.shape());
  const std::vector<double> one = {seed};
  const Tensor start = Tensor::of(one).to(loss.value.dtype()).reshape(loss.value.shape());
  backward({{loss, start.on(loss.value.device())}});
}

void Tape::backward(const std::vector<std::pair<Var, Tensor>>& seeds) {
  for (const auto& [var, seed] : seeds) {
    require(var.grad != nullptr, "backward from a value that was not recorded on the tape");
    GradOut(var.grad).out.copy_from(seed);
  }
  run_backward();
}

void Tape::run_backward() {
  while (!nodes_.empty()) {
    // Moved out first: what the node saved is freed here, before the next node runs.
    Node node = std::move(nodes_.back());
    nodes_.pop_back();
    const bool used = std::any_of(node.outputs.begin(), node.outputs.end(),
                                  [](const GradPtr& grad) { return grad && grad->written; });
    if (!used) continue;
    for (Saved& one : node.saved)
      if (one.again) one.tensor = (*one.again)();
    node.backward(Backward(node.saved, node.outputs));
    if (observer_) observer_(node.op, Pass::backward);
  }
  counted_.clear();
}

std::vector<SavedBytes> Tape::report() const {
  std::vector<SavedBytes> rows;
  for (const auto& [op, row] : bytes_) rows.push_back(row);
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return rows;
}

}  // namespace ssm
