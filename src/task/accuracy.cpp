// Which rows of the logits are asked for, and how a batch of long sequences is cut.
#include "task/accuracy.h"

#include <algorithm>

#include "core/state.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace ssm {
namespace {

// Columns [begin, end) of the (sequences, length) ids of a batch, packed.
Tensor part(const Tensor& ids, int64_t sequences, int64_t length, int64_t begin, int64_t end) {
  if (begin == 0 && end == length) return ids;
  const Tensor out = Tensor::empty({sequences * (end - begin)}, DType::i64);
  for (int64_t s = 0; s < sequences; ++s)
    std::copy_n(ids.data<int64_t>() + s * length + begin, end - begin, out.data<int64_t>() + s * (end - begin));
  return out;
}

// Adds the answers among `targets` to `result`; `wrong` notes the sequences that had a wrong one.
void count(const Tensor& logits, const Tensor& targets, int64_t length, Accuracy& result, std::vector<bool>& wrong) {
  const int64_t vocab = logits.size(1);
  const Tensor host = logits.on(Device::cpu()).to(DType::f64);
  for (int64_t row = 0; row < targets.count(); ++row) {
    const int64_t target = targets.data<int64_t>()[row];
    if (target == kIgnoredTarget) continue;
    const double* const of = host.data<double>() + row * vocab;
    const bool right = std::max_element(of, of + vocab) - of == target;
    ++result.answers;
    result.right += right;
    if (!right) wrong[static_cast<size_t>(row / length)] = true;
  }
}

}  // namespace

Accuracy accuracy(const Model& model, Threads& threads, TaskShape shape, uint64_t seed,
                  const AccuracyOptions& options) {
  shape.every_token = false;
  const Ctx ctx{.device = model.options().device, .threads = &threads};
  const int64_t length = shape.inputs();
  const int64_t abreast = std::clamp<int64_t>(options.tokens_in_memory / length, 1, options.sequences);
  const int64_t step = std::clamp<int64_t>(options.tokens_at_once / abreast, 1, length);
  Accuracy result;
  for (int64_t first = 0; first < options.sequences; first += abreast) {
    const int64_t sequences = std::min(abreast, options.sequences - first);
    const TokenBatch batch = make_batch(shape, seed, "test", first, sequences);
    const bool carried = step < length;
    StatePool pool(model.lm().state_spec(), carried ? sequences : 1, ctx.device);
    if (carried)
      for (int64_t s = 0; s < sequences; ++s) pool.acquire();
    std::vector<bool> wrong(static_cast<size_t>(sequences), false);
    for (int64_t begin = 0; begin < length; begin += step) {
      if (options.go_on && !options.go_on()) return result;
      const int64_t end = std::min(length, begin + step);
      const Tensor ids = part(batch.inputs, sequences, length, begin, end);
      const Tensor targets = part(batch.targets, sequences, length, begin, end);
      const Var hidden =
          model.lm().hidden(ctx, ids, Seqs::dense(sequences, end - begin), carried ? pool.state() : State());
      const auto wanted = targets.span<int64_t>();
      if (std::any_of(wanted.begin(), wanted.end(), [](int64_t id) { return id != kIgnoredTarget; }))
        count(model.lm().logits(ctx, hidden).value, targets, end - begin, result, wrong);
    }
    result.sequences += sequences;
    result.whole += std::count(wrong.begin(), wrong.end(), false);
  }
  return result;
}

}  // namespace ssm
