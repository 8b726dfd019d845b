#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.h"

namespace ssm {
namespace {

struct Candidate {
  double weight;  // proportional to its probability; 1 for the likeliest
  int64_t id;
};
using Candidates = std::vector<Candidate>;

// A total order, so that results do not depend on the library's sort.
bool likelier(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

double largest(std::span<const double> logits) {
  double most = -INFINITY;
  for (const double logit : logits) {
    require(!std::isnan(logit) && logit != INFINITY, "the model's logits are ", logit,
            "; its weights or its state are damaged, or training has diverged");
    most = std::max(most, logit);
  }
  require(most != -INFINITY, "all of the model's logits are -inf; its weights or its state are damaged");
  return most;
}

std::vector<double> penalised(std::span<const double> logits, double penalty, std::span<const int64_t> seen) {
  std::vector<double> result(logits.begin(), logits.end());
  if (penalty == 1.0) return result;
  for (const int64_t id : seen) {
    double& logit = result[static_cast<size_t>(id)];
    logit = logit < 0 ? logit * penalty : logit / penalty;
  }
  return result;
}

void keep_top_k(Candidates& all, int64_t k) {
  if (k >= static_cast<int64_t>(all.size())) return;
  std::nth_element(all.begin(), all.begin() + k, all.end(), likelier);
  all.resize(static_cast<size_t>(k));
  std::sort(all.begin(), all.end(), likelier);
}

double sum_of(const Candidates& all) {
  double sum = 0;
  for (const Candidate& one : all) sum += one.weight;
  return sum;
}

// Sorts only as far as needed: the nucleus of a trained model is a few of tens of thousands.
void keep_top_p(Candidates& all, double p) {
  const double enough = p * sum_of(all);
  double sum = 0;
  for (size_t begin = 0, end = 64; begin < all.size(); begin = end, end *= 4) {
    end = std::min(end, all.size());
    const auto at = [&](size_t i) { return all.begin() + static_cast<std::ptrdiff_t>(i); };
    if (end < all.size()) std::nth_element(at(begin), at(end), all.end(), likelier);
    std::sort(at(begin), at(end), likelier);
    for (size_t i = begin; i < end; ++i) {
      sum += all[i].weight;
      if (sum < enough) continue;
      all.resize(i + 1);
      return;
    }
  }
}

}  // namespace

Fields SamplerOptions::fields() {
  return {{"temperature", &temperature, "divides the logits; 0: greedy"},
          {"top_k", &top_k, "sample from the K likeliest tokens; 0: all"},
          {"top_p", &top_p, "sample from the fewest tokens that have this much probability together"},
          {"min_p", &min_p, "leave out tokens below this fraction of the likeliest's probability"},
          {"repetition_penalty", &repetition_penalty, "above 1 makes tokens that were there before unlikelier"}};
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
}

int64_t sample(std::span<const double> logits, const SamplerOptions& options, std::span<const int64_t> seen,
               double uniform) {
  const std::vector<double> values = penalised(logits, options.repetition_penalty, seen);
  const double most = largest(values);
  if (options.temperature == 0) return std::distance(values.begin(), std::find(values.begin(), values.end(), most));

  Candidates kept;
  kept.reserve(values.size());
  for (size_t id = 0; id < values.size(); ++id)
    kept.push_back({std::exp((values[id] - most) / options.temperature), static_cast<int64_t>(id)});
  if (options.top_k > 0) keep_top_k(kept, options.top_k);
  if (options.top_p < 1) keep_top_p(kept, options.top_p);
  if (options.min_p > 0) std::erase_if(kept, [&](const Candidate& one) { return one.weight < options.min_p; });

  const double target = uniform * sum_of(kept);
  double sum = 0;
  int64_t chosen = -1;
  for (const Candidate& one : kept) {
    if (one.weight == 0) continue;
    chosen = one.id;  // the last possible one when rounding leaves the target beyond the sum
    sum += one.weight;
    if (sum > target) break;
  }
  return chosen;
}

double log_probability(std::span<const double> logits, int64_t id) {
  const double most = largest(logits);
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - most);
  return logits[static_cast<size_t>(id)] - most - std::log(sum);
}

}  // namespace ssm
