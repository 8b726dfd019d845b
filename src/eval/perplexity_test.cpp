// Perplexity against sums over the model's logits, for streams longer than a piece and for every way to cut windows.
#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "formats/test_files.h"

namespace ssm {
namespace {

constexpr int64_t kVocab = 19;

Threads& some_threads() {
  static Threads threads(2);
  return threads;
}

std::unique_ptr<Model> small_model(const ModelOptions& options) {
  return Model::create(ModelConfig::from_json(R"({"d_model": 12, "n_layer": 2, "vocab_size": 19})", "test"), 3,
                       options);
}

std::vector<int64_t> some_ids(int64_t count) {
  const Rng rng(8, "ids");
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int64_t>(rng.below(static_cast<uint64_t>(i), kVocab)));
  return ids;
}

// -log softmax(logits)[target] summed over the last `scored` targets of inputs [begin, end).
double direct(const Model& model, const std::vector<int64_t>& ids, int64_t begin, int64_t end, int64_t scored) {
  const Ctx ctx{.device = model.options().device, .threads = &some_threads()};
  const Tensor inputs =
      Tensor::of(std::span<const int64_t>(ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                 {end - begin});
  const Tensor logits =
      model.lm().logits(ctx, model.lm().hidden(ctx, inputs, Seqs::dense(1, end - begin))).value.to(DType::f64);
  double total = 0;
  for (int64_t t = end - begin - scored; t < end - begin; ++t) {
    const double* row = logits.matrix<double>()[t];
    double sum = 0;
    for (int64_t v = 0; v < logits.size(1); ++v) sum += std::exp(row[v]);
    total += std::log(sum) - row[ids[static_cast<size_t>(begin + t + 1)]];
  }
  return total;
}

TEST(Perplexity, OfOneStreamIsTheSumOverItsLogits) {
  for (const ModelOptions& options :
       {ModelOptions{.device = Device::ref(), .dtype = DType::f64}, ModelOptions{.device = Device::cpu()}}) {
    const auto model = small_model(options);
    for (const int64_t count : {2, 3, 1024, 1025, 1026, 2500}) {
      const std::vector<int64_t> ids = some_ids(count);
      const Perplexity result = perplexity(*model, some_threads(), stream_of(Tokens::from_ids(ids, kVocab, "")), {});
      const double right = direct(*model, ids, 0, count - 1, count - 1);
      EXPECT_EQ(result.tokens, count - 1);
      EXPECT_NEAR(result.total, right, (options.dtype == DType::f64 ? 1e-10 : 1e-5) * right) << count;
      EXPECT_EQ(result.bytes, 0);
    }
  }
}

// The loop that Hugging Face's documentation gives for models of fixed length, over direct(): a window's targets are
// the tokens past the end of the one before it, and its own first token has nothing to be predicted from.
TEST(Perplexity, OfWindowsIsTheSumOverWindows) {
  const auto model = small_model({.device = Device::ref(), .dtype = DType::f64});
  for (const int64_t count : {2, 3, 7, 8, 9, 17, 50, 51})
    for (const int64_t context : {2, 3, 7, 8, 200})
      for (const int64_t stride : {0, 1, 2, 3, 7}) {
        if (stride > context) continue;
        const std::vector<int64_t> ids = some_ids(count);
        const int64_t step = stride == 0 ? context : stride;
        double right = 0;
        int64_t scored = 0, previous_end = 0;
        for (int64_t begin = 0; begin < count; begin += step) {
          const int64_t end = std::min(begin + context, count);
          const int64_t targets = std::min(end - previous_end, end - begin - 1);
          if (targets > 0) right += direct(*model, ids, begin, end - 1, targets);
          scored += targets;
          previous_end = end;
          if (end == count) break;
        }
        const Perplexity result = perplexity(*model, some_threads(), stream_of(Tokens::from_ids(ids, kVocab, "")),
                                             {.context = context, .stride = stride});
        EXPECT_EQ(result.tokens, scored) << count << " tokens, " << context << "/" << stride;
        EXPECT_NEAR(result.total, right, 1e-10 * right) << count << " tokens, " << context << "/" << stride;
      }
}

TEST(Perplexity, ReadsAStreamAsItComes) {
  const auto model = small_model({.device = Device::cpu()});
  const std::vector<int64_t> ids = some_ids(5000);
  for (const PerplexityOptions& options : {PerplexityOptions{}, PerplexityOptions{.context = 64, .stride = 10}}) {
    size_t at = 0, largest = 0;
    const TokenStream stream{.next =
                                 [&](std::span<int64_t> out) {
                                   const size_t count = std::min(out.size(), ids.size() - at);
                                   largest = std::max(largest, out.size());
                                   std::copy_n(ids.begin() + static_cast<std::ptrdiff_t>(at), count, out.begin());
                                   at += count;
                                   return count;
                                 },
                             .origin = "test"};
    const Perplexity result = perplexity(*model, some_threads(), stream, options);
    EXPECT_EQ(result.tokens, 4999);
    EXPECT_EQ(at, ids.size());
    EXPECT_LE(largest, 1100u) << "more than a piece at once";
    EXPECT_EQ(result.total,
              perplexity(*model, some_threads(), stream_of(Tokens::from_ids(ids, kVocab, "")), options).total);
  }
}

TEST(Perplexity, UnitsFollowFromNats) {
  const Perplexity result{.tokens = 4, .bytes = 10, .total = 8};
  EXPECT_DOUBLE_EQ(result.nats(), 2);
  EXPECT_DOUBLE_EQ(result.perplexity(), std::exp(2.0));
  EXPECT_DOUBLE_EQ(result.bits_per_byte(), 0.8 / std::log(2.0));
}

TEST(Perplexity, CountsTheBytesOfScoredTokensAndStopsWhenTold) {
  const auto model = small_model({.device = Device::cpu()});
  const std::vector<int64_t> ids = some_ids(3000);
  std::vector<int64_t> bytes;
  for (int64_t id = 0; id < kVocab; ++id) bytes.push_back(id);
  int64_t right = 0;
  for (size_t i = 1; i < ids.size(); ++i) right += ids[i];
  const Tokens tokens = Tokens::from_ids(ids, kVocab, "");
  EXPECT_EQ(perplexity(*model, some_threads(), stream_of(tokens), {}, bytes).bytes, right);
  int calls = 0;
  const Perplexity part = perplexity(*model, some_threads(), stream_of(tokens), {}, bytes, [&](const Perplexity&) {
    ++calls;
    return false;
  });
  EXPECT_EQ(calls, 1);
  EXPECT_LT(part.tokens, 2999);
}

TEST(Perplexity, WhatCannotBeScoredIsAnError) {
  const auto model = small_model({.device = Device::cpu()});
  const auto of = [&](const std::vector<int64_t>& ids, int64_t vocab, const PerplexityOptions& options) {
    return [&, ids, vocab, options] {
      perplexity(*model, some_threads(), stream_of(Tokens::from_ids(ids, vocab, "")), options);
    };
  };
  EXPECT_TRUE(fails_with("expected at least 2", of({5}, kVocab, {})));
  EXPECT_TRUE(fails_with("token 2 is 21", of({1, 2, 21}, 30, {})));
  EXPECT_TRUE(fails_with("context is 1", of({1, 2, 3}, kVocab, {.context = 1})));
  EXPECT_TRUE(fails_with("stride is 9", of({1, 2, 3}, kVocab, {.context = 8, .stride = 9})));
}

}  // namespace
}  // namespace ssm
