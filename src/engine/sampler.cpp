// Cuts are thresholds over one array of weights: what falls below becomes 0, and the draw walks what is left.
#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "engine/softmax.h"

namespace ssm {
namespace {

constexpr size_t kBlock = 256;  // ids whose weights share a sum, so that a draw need not walk all of them
constexpr size_t kLanes = 16;   // independent sums and maxima: the compiler makes SIMD of them

template <class Logit>
constexpr Logit kInfinity = std::numeric_limits<Logit>::infinity();

// Throws on what is no logit.
template <class Logit>
Logit largest(std::span<const Logit> logits) {
  std::array<Logit, kLanes> most;
  std::array<Logit, kLanes> wrong{};  // not zero: a NaN or +inf was there
  most.fill(-kInfinity<Logit>);
  const auto take = [&](size_t lane, Logit logit) {
    most[lane] = logit > most[lane] ? logit : most[lane];
    wrong[lane] = logit < kInfinity<Logit> ? wrong[lane] : Logit{1};
  };
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) take(lane, logits[i + lane]);
  for (size_t i = whole; i < logits.size(); ++i) take(0, logits[i]);
  if (std::any_of(wrong.begin(), wrong.end(), [](Logit one) { return one != 0; })) {
    const auto found = std::find_if(logits.begin(), logits.end(), [](Logit l) { return !(l < kInfinity<Logit>); });
    throw Error("the model's logits are ", *found, "; its weights or its state are damaged, or training has diverged");
  }
  const Logit result = *std::max_element(most.begin(), most.end());
  require(result != -kInfinity<Logit>, "all of the model's logits are -inf; its weights or its state are damaged");
  return result;
}

double sum_of(std::span<const float> values) {
  std::array<double, kLanes> sums{};
  const size_t whole = values.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(values[i + lane]);
  for (size_t i = whole; i < values.size(); ++i) sums[0] += static_cast<double>(values[i]);
  double sum = 0;
  for (const double one : sums) sum += one;
  return sum;
}

void fill_weights(std::span<const float> logits, float most, double scale, std::span<float> weights) {
  cpu::softmax_weights(logits.data(), static_cast<int64_t>(logits.size()), most, static_cast<float>(scale),
                       weights.data());
}
void fill_weights(std::span<const double> logits, double most, double scale, std::span<float> weights) {
  for (size_t id = 0; id < logits.size(); ++id) weights[id] = static_cast<float>(logits[id] - most);
  fill_weights(weights, 0, scale, weights);
}

// Zeroes the weights of all ids behind `last` in the order of `keys`: smaller, or equal and with a higher id.
template <class Key>
void keep_up_to(size_t last, std::span<const Key> keys, std::span<float> weights) {
  const Key least = keys[last];
  for (size_t id = 0; id <= last; ++id) weights[id] = keys[id] >= least ? weights[id] : 0;
  for (size_t id = last + 1; id < keys.size(); ++id) weights[id] = keys[id] > least ? weights[id] : 0;
}

// The order of `likeliest`.
template <class Logit>
auto likelier_of(std::span<const Logit> logits) {
  return [logits](int64_t a, int64_t b) {
    const Logit left = logits[static_cast<size_t>(a)], right = logits[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  };
}

// The k likeliest, the least likely of them last, the others in no order.
template <class Logit>
std::vector<int64_t> select(std::span<const Logit> logits, int64_t k) {
  const auto at = [&](int64_t id) { return logits[static_cast<size_t>(id)]; };
  const auto likelier = likelier_of(logits);
  const auto count = static_cast<int64_t>(logits.size());
  k = std::min(k, count);
  std::vector<int64_t> kept;
  if (k <= 0) return kept;
  // The k likeliest so far and as many again that beat the least of them when they came. Equals of it come too late:
  // their ids are higher.
  const auto capacity = static_cast<size_t>(std::min(count, std::max<int64_t>(2 * k, 64)));
  kept.reserve(capacity);
  Logit least = -kInfinity<Logit>;
  bool full = false;
  const auto shrink = [&] {
    std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end(), likelier);
    kept.resize(static_cast<size_t>(k));
    least = at(kept.back());
    full = true;
  };
  for (int64_t id = 0; id < count; ++id) {
    if (full && !(at(id) > least)) continue;
    if (kept.size() == capacity) shrink();
    kept.push_back(id);
  }
  shrink();
  return kept;
}

template <class Logit>
std::vector<int64_t> likeliest_of(std::span<const Logit> logits, int64_t k) {
  std::vector<int64_t> ids = select(logits, k);
  std::sort(ids.begin(), ids.end(), likelier_of(logits));
  return ids;
}

// Into `changed`, unless no penalty applies: then the logits as they are.
template <class Logit>
std::span<const Logit> penalise(std::span<const Logit> logits, const SamplerOptions& options,
                                std::span<const SeenId> seen, std::vector<Logit>& changed) {
  const bool repetition = options.repetition_penalty != 1;
  const bool counts = options.frequency_penalty != 0 || options.presence_penalty != 0;
  if (seen.empty() || (!repetition && !counts)) return logits;
  changed.assign(logits.begin(), logits.end());
  for (const SeenId& one : seen) {
    auto logit = static_cast<double>(changed[static_cast<size_t>(one.id)]);
    if (repetition) logit = logit < 0 ? logit * options.repetition_penalty : logit / options.repetition_penalty;
    if (one.written > 0)
      logit -= static_cast<double>(one.written) * options.frequency_penalty + options.presence_penalty;
    changed[static_cast<size_t>(one.id)] = static_cast<Logit>(logit);
  }
  return changed;
}

}  // namespace

Fields SamplerOptions::fields() {
  return {{"temperature", &temperature, "divides the logits; 0: greedy"},
          {"top_k", &top_k, "sample from the K likeliest tokens; 0: all"},
          {"top_p", &top_p, "sample from the fewest tokens that have this much probability together"},
          {"min_p", &min_p, "leave out tokens below this fraction of the likeliest's probability"},
          {"repetition_penalty", &repetition_penalty, "above 1 makes tokens that were there before unlikelier"},
          {"frequency_penalty", &frequency_penalty, "off a token's logit for each time it was written"},
          {"presence_penalty", &presence_penalty, "off a token's logit once it was written"}};
}

void SamplerOptions::check() const {
  const auto within = [](const char* name, double value, double low, double high) {
    require(low <= value && value <= high, name, " is ", value, ", expected ", low, " to ", high);
  };
  within("temperature", temperature, 0, 1e6);
  require(top_k >= 0, "top_k is ", top_k, ", expected 0 (all) or more");
  within("top_p", top_p, 0, 1);
  within("min_p", min_p, 0, 1);
  within("repetition_penalty", repetition_penalty, 1e-3, 1e3);
  within("frequency_penalty", frequency_penalty, -100, 100);
  within("presence_penalty", presence_penalty, -100, 100);
}

template <class Logit>
int64_t Sampler::choose_from(std::span<const Logit> given, std::span<const SeenId> seen, double uniform,
                             std::vector<Logit>& penalised) {
  const std::span<const Logit> logits = penalise(given, options_, seen, penalised);
  const Logit most = largest(logits);
  if (options_.temperature == 0) return std::distance(logits.begin(), std::find(logits.begin(), logits.end(), most));

  weights_.resize(logits.size());
  // The bound keeps 0 times the scale a number.
  fill_weights(logits, most, std::min(1 / options_.temperature, 1e30), weights_);
  if (options_.top_k > 0 && options_.top_k < static_cast<int64_t>(logits.size()))
    keep_up_to(static_cast<size_t>(select(logits, options_.top_k).back()), logits, weights_);
  if (options_.top_p < 1) keep_top_p();
  if (options_.min_p > 0) {
    const auto least = static_cast<float>(options_.min_p);
    for (float& weight : weights_) weight = weight >= least ? weight : 0;
  }
  return draw(uniform);
}

int64_t Sampler::choose(std::span<const float> logits, std::span<const SeenId> seen, double uniform) {
  return choose_from(logits, seen, uniform, penalised_f32_);
}
int64_t Sampler::choose(std::span<const double> logits, std::span<const SeenId> seen, double uniform) {
  return choose_from(logits, seen, uniform, penalised_f64_);
}

double Sampler::sum_blocks() {
  block_sums_.clear();
  double sum = 0;
  for (size_t begin = 0; begin < weights_.size(); begin += kBlock) {
    block_sums_.push_back(sum_of(std::span(weights_).subspan(begin, std::min(kBlock, weights_.size() - begin))));
    sum += block_sums_.back();
  }
  return sum;
}

// A histogram over the leading bits of the weights (exponent and five of the mantissa, which order positive floats)
// finds the bin in which the sum is reached; only that bin is sorted.
void Sampler::keep_top_p() {
  constexpr int kShift = 23 - 5;
  const auto bin_of = [](float weight) { return std::bit_cast<uint32_t>(weight) >> kShift; };
  bin_sums_.assign(bin_of(1.0f) + 1, 0);
  for (const float weight : weights_)
    if (weight != 0) bin_sums_[bin_of(weight)] += static_cast<double>(weight);
  double all = 0;
  for (const double sum : bin_sums_) all += sum;
  const double enough = options_.top_p * all;
  double sum = 0;
  size_t bin = bin_sums_.size();
  while (bin-- > 0 && sum + bin_sums_[bin] < enough) sum += bin_sums_[bin];
  if (bin >= bin_sums_.size()) return;  // rounding: all are needed

  candidates_.clear();
  for (size_t id = 0; id < weights_.size(); ++id)
    if (bin_of(weights_[id]) == bin) candidates_.push_back(static_cast<int64_t>(id));
  const auto weight = [&](int64_t id) { return weights_[static_cast<size_t>(id)]; };
  std::sort(candidates_.begin(), candidates_.end(),
            [&](int64_t a, int64_t b) { return weight(a) != weight(b) ? weight(a) > weight(b) : a < b; });
  size_t last = 0;
  for (; last + 1 < candidates_.size(); ++last)
    if ((sum += static_cast<double>(weight(candidates_[last]))) >= enough) break;
  keep_up_to<float>(static_cast<size_t>(candidates_[last]), weights_, weights_);
}

int64_t Sampler::draw(double uniform) {
  const double target = uniform * sum_blocks();
  double sum = 0;
  size_t block = 0;
  while (block + 1 < block_sums_.size() && sum + block_sums_[block] <= target) sum += block_sums_[block++];
  int64_t chosen = -1;
  for (size_t id = block * kBlock; id < weights_.size(); ++id) {
    if (weights_[id] == 0) continue;
    chosen = static_cast<int64_t>(id);
    if ((sum += static_cast<double>(weights_[id])) > target) return chosen;
  }
  // Rounding left the target beyond the sum: the last one that can come.
  for (size_t id = block * kBlock; chosen < 0;)
    if (weights_[--id] != 0) chosen = static_cast<int64_t>(id);
  return chosen;
}

std::vector<int64_t> likeliest(std::span<const float> logits, int64_t k) { return likeliest_of(logits, k); }
std::vector<int64_t> likeliest(std::span<const double> logits, int64_t k) { return likeliest_of(logits, k); }

double log_sum_exp(std::span<const float> logits) {
  const float most = largest(logits);
  std::array<float, 4 * kBlock> weights;
  double sum = 0;
  for (size_t begin = 0; begin < logits.size(); begin += weights.size()) {
    const std::span<const float> piece = logits.subspan(begin, std::min(weights.size(), logits.size() - begin));
    fill_weights(piece, most, 1, weights);
    sum += sum_of(std::span(weights).first(piece.size()));
  }
  return static_cast<double>(most) + std::log(sum);
}

double log_sum_exp(std::span<const double> logits) {
  const double most = largest(logits);
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

}  // namespace ssm
