// Tensors, dtypes, random numbers, the allocator, the tape, configs and state: what everything else stands on.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/config.h"
#include "core/context.h"
#include "core/memory.h"
#include "core/params.h"
#include "core/rng.h"
#include "core/sequences.h"
#include "core/state.h"

namespace ssm {
namespace {

TEST(DTypes, HalfPrecisionRoundsToNearestEvenAndKeepsSpecials) {
  // Every f16 widens to a float that narrows back to it; NaNs stay NaNs.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    F16 half;
    half.bits = static_cast<uint16_t>(bits);
    const auto wide = static_cast<float>(half);
    if (std::isnan(wide))
      EXPECT_TRUE(std::isnan(static_cast<float>(F16(wide))));
    else
      EXPECT_EQ(F16(wide).bits, half.bits);
    BF16 brain;
    brain.bits = static_cast<uint16_t>(bits);
    const auto wider = static_cast<float>(brain);
    if (std::isnan(wider))
      EXPECT_TRUE(std::isnan(static_cast<float>(BF16(wider))));
    else
      EXPECT_EQ(BF16(wider).bits, brain.bits);
  }
  EXPECT_EQ(F16(65519.9f).bits, 0x7bff);
  EXPECT_EQ(F16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(F16(1.0f + 0x1p-11f).bits, 0x3c00);      // halfway: to even
  EXPECT_EQ(F16(1.0f + 3 * 0x1p-11f).bits, 0x3c02);  // halfway: to even
  EXPECT_EQ(F16(0x1p-25f).bits, 0x0000);             // half of the smallest subnormal: to even
  EXPECT_EQ(F16(0x1.8p-25f).bits, 0x0001);
  EXPECT_EQ(BF16(1.0f + 0x1p-8f).bits, 0x3f80);
  EXPECT_EQ(BF16(std::numeric_limits<float>::max()).bits, 0x7f80);
}

TEST(Tensors, ViewsShareAndCopiesDoNot) {
  const std::vector<float> values = {0, 1, 2, 3, 4, 5};
  const Tensor a = Tensor::of(values).reshape({2, 3});
  const Tensor column = a.columns(1, 2);
  EXPECT_FALSE(column.contiguous());
  const Tensor copy = column.clone();
  column.matrix<float>()[1][0] = 40;
  EXPECT_EQ(a.matrix<float>()[1][1], 40);
  EXPECT_EQ(copy.data<float>()[1], 4);
  EXPECT_EQ(copy.shape(), (Shape{2, 1}));
  const Tensor doubled = a.to(DType::f64);
  doubled.add(a.to(DType::f64));
  EXPECT_EQ(doubled.matrix<double>()[1][2], 10);
  EXPECT_EQ(a.rows(1, 2).data<float>()[0], 3);
  column.fill_zero();
  EXPECT_EQ(a.data<float>()[0] + a.data<float>()[1] + a.data<float>()[4], 0);
  EXPECT_THROW(column.reshape({2}), Error);
  EXPECT_THROW(a.data<double>(), Error);
  EXPECT_THROW(Tensor::empty({int64_t{1} << 40, int64_t{1} << 40}, DType::f32), Error);
  EXPECT_EQ(Tensor::empty({0, 5}, DType::f32).count(), 0);
}

TEST(Memory, AFreedBlockIsHandedOutAgain) {
  { const Tensor warm = Tensor::empty({1000, 1000}, DType::f32); }
  const int64_t calls = memory_stats().system_calls;
  for (int i = 0; i < 10; ++i) const Tensor again = Tensor::empty({1000, 1000 - i}, DType::f32);
  EXPECT_EQ(memory_stats().system_calls, calls);
}

TEST(Rng, IsAFunctionOfSeedStreamAndPosition) {
  // Known answers of Philox4x32-10 (Random123's kat_vectors), for key and counter of zero and of all ones, need a raw
  // stream; ours hashes names, so what is pinned here is that nothing changes from release to release.
  const Rng a(1, "x"), b(1, "y"), c(2, "x");
  EXPECT_EQ(a.bits(5), Rng(1, "x").bits(5));
  EXPECT_NE(a.bits(5), b.bits(5));
  EXPECT_NE(a.bits(5), c.bits(5));
  double mean = 0, square = 0, normal = 0, normal_square = 0;
  constexpr int kDraws = 100000;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = a.uniform(i), n = a.normal(i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    mean += u / kDraws, square += u * u / kDraws, normal += n / kDraws, normal_square += n * n / kDraws;
    ASSERT_LT(a.below(i, 7), 7u);
  }
  EXPECT_NEAR(mean, 0.5, 0.005);
  EXPECT_NEAR(square, 1.0 / 3, 0.005);
  EXPECT_NEAR(normal, 0, 0.02);
  EXPECT_NEAR(normal_square, 1, 0.02);
}

TEST(Tape, SplitPartsShareOneGradientAndFirstWritesAssign) {
  Threads threads(1);
  Tape tape;
  const Ctx ctx{Device::ref(), &threads, &tape};
  const std::vector<double> values = {1, 2, 3, 4, 5, 6};
  const Var whole = tape.variable(Tensor::of(values).reshape({2, 3}));
  const std::vector<Var> parts = split(ctx, whole, {1, 2});
  EXPECT_EQ(parts[1].value.matrix<double>()[1][0], 5);
  const std::vector<double> seed = {10, 20, 30, 40};
  tape.backward({{parts[1], Tensor::of(seed).reshape({2, 2})}, {parts[1], Tensor::of(seed).reshape({2, 2})}});
  const auto grad = whole.grad->value.matrix<double>();
  EXPECT_EQ(grad[0][0], 0);  // the part nobody used
  EXPECT_EQ(grad[0][1], 20);
  EXPECT_EQ(grad[1][2], 80);
}

TEST(Tape, ReportCountsSharedMemoryOnceAndParametersNever) {
  Tape tape;
  const Tensor big = Tensor::zeros({100}, DType::f32), weight = Tensor::zeros({50}, DType::f32);
  tape.mark_parameter(weight);
  tape.record("first", {{"x", big}, {"weight", weight}}, {}, [](const Backward&) {});
  tape.record("second", {{"x", big}}, {}, [](const Backward&) {});
  const auto rows = tape.report();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].op, "first");
  EXPECT_EQ(rows[0].bytes, 400);
  EXPECT_EQ(rows[1].bytes, 0);
}

TEST(State, SlotsAreCopiedLikeBytes) {
  StatePool pool({{"a", {2, 3}, DType::f32}, {"b", {4}, DType::f64}}, 2);
  EXPECT_EQ(bytes_of(pool.spec()), 2 * 3 * 4 + 4 * 8);
  const auto first = pool.acquire(), second = pool.acquire();
  EXPECT_THROW(pool.acquire(), Error);
  pool.state()[0].value.rows(first, first + 1).reshape({6}).data<float>()[4] = 7;
  pool.copy(first, second);
  EXPECT_EQ(pool.save(first), pool.save(second));
  pool.zero(first);
  EXPECT_NE(pool.save(first), pool.save(second));
  pool.restore(first, pool.save(second));
  EXPECT_EQ(pool.save(first), pool.save(second));
  EXPECT_THROW(pool.restore(first, std::vector<std::byte>(3)), Error);
  pool.release(second);
  EXPECT_EQ(pool.acquire(), second);
  EXPECT_EQ(pool.state()[0].value.rows(second, second + 1).reshape({6}).data<float>()[4], 0);
}

TEST(StatePool, EntriesPerTokenGrowAndAreSavedAsFarAsTheyCount) {
  StatePool pool({{"tokens", {1}, DType::i64}, {"kv", {3}, DType::f32, true}, {"fixed", {2}, DType::f32}}, 2);
  EXPECT_EQ(bytes_of(pool.spec()), 8 + 8);
  EXPECT_EQ(bytes_of(pool.spec(), 5), 8 + 5 * 3 * 4 + 8);
  const StatePool::Slot slot = pool.acquire(), other = pool.acquire();
  const Ctx ctx;
  const auto append = [&](StatePool::Slot to, int64_t count, float value) {
    const Seqs seqs = Seqs::ragged(std::vector<int64_t>{count}, std::vector<int64_t>{to});
    Var &tokens = pool.state()[0], &kv = pool.state()[1];
    const int64_t before = token_counts(tokens.value, seqs)[0];
    make_room(kv, before + count);
    const Tensor rows = kv.value.rows(to, to + 1).reshape({kv.value.size(1), 3}).rows(before, before + count);
    for (float& element : rows.span<float>()) element = value;
    advance_counts(ctx, tokens, seqs);
  };
  append(slot, 3, 1);
  append(other, 1, 5);
  append(slot, 200, 2);  // past the first capacity and its double
  const std::vector<std::byte> saved = pool.save(slot);
  EXPECT_EQ(static_cast<int64_t>(saved.size()), bytes_of(pool.spec(), 203));
  EXPECT_EQ(spec_of_saved(pool.spec(), saved)[1].shape, (Shape{203, 3}));
  EXPECT_EQ(static_cast<int64_t>(pool.save(other).size()), bytes_of(pool.spec(), 1));

  StatePool fresh(pool.spec(), 3);
  fresh.restore(2, saved);
  EXPECT_EQ(fresh.save(2), saved);
  EXPECT_EQ(static_cast<int64_t>(fresh.save(0).size()), bytes_of(fresh.spec()));
  pool.copy(slot, other);
  EXPECT_EQ(pool.save(other), saved);
  append(other, 1, 7);
  EXPECT_EQ(pool.save(slot), saved);
  pool.zero(slot);
  EXPECT_EQ(static_cast<int64_t>(pool.save(slot).size()), bytes_of(pool.spec()));

  // Bytes that say more tokens than they hold, fewer, none, or a negative number of them.
  std::vector<std::byte> hostile = saved;
  for (const int64_t tokens : {int64_t{204}, int64_t{202}, int64_t{0}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
    std::memcpy(hostile.data(), &tokens, sizeof tokens);
    EXPECT_THROW(fresh.restore(1, hostile), Error) << tokens;
  }
  EXPECT_THROW(fresh.restore(1, std::span(saved).first(4)), Error);
  EXPECT_THROW(fresh.restore(1, {}), Error);
  EXPECT_EQ(static_cast<int64_t>(fresh.save(1).size()), bytes_of(fresh.spec()));
}

TEST(Sequences, OffsetsSlotsAndLongest) {
  const Seqs seqs = Seqs::ragged(std::vector<int64_t>{3, 0, 2});
  EXPECT_EQ(seqs.tokens(), 5);
  EXPECT_EQ(seqs.longest, 3);
  EXPECT_EQ(seqs.offsets, (std::vector<int64_t>{0, 3, 3, 5}));
  EXPECT_EQ(seqs.slots, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_THROW(Seqs::ragged(std::vector<int64_t>{-1}), Error);
  EXPECT_THROW(Seqs::ragged(std::vector<int64_t>{1, 1}, std::vector<int64_t>{0}), Error);
}

TEST(Params, AreDeclaredOnceAndCheckedAgainstTheirSource) {
  ParamStore fresh({.seed = 3});
  const Params root(fresh);
  const Var w = root.sub("a").get("w", {2, 3}, Init::uniform(1));
  EXPECT_THROW(root.sub("a").get("w", {2, 3}, Init::uniform(1)), Error);
  EXPECT_EQ(fresh.find("a.w")->var.value.storage(), w.value.storage());

  TensorMap source = {{"a.w", w.value}, {"stray", w.value}};
  ParamStore loaded({.source = &source});
  EXPECT_THROW(Params(loaded).sub("a").get("v", {2, 3}, Init::constant(0)), Error);
  EXPECT_THROW(Params(loaded).sub("a").get("w", {3, 2}, Init::constant(0)), Error);
  EXPECT_EQ(Params(loaded).sub("a").get("w", {2, 3}, Init::constant(0)).value.storage(), w.value.storage());
  EXPECT_THROW(loaded.expect_all_used("test"), Error);
  loaded.expect_all_used("test", {"stray"});
}

struct Sample {
  int64_t width = 3, rank = 0;
  double rate = 0.5;
  bool on = false;
  std::string name = "x";
  std::vector<int64_t> list;
  int64_t inner = 1;
  Fields fields() {
    return {{"width", &width, "a"},
            {.name = "rank", .target = &rank, .help = "b", .word = "auto", .word_value = 0},
            {"rate", &rate, "c"},
            {"on", &on, "d"},
            {"name", &name, "e"},
            {"list", &list, "f"},
            {.name = "nested",
             .target = Field::Nested([this] {
               return Fields{{"inner", &inner, "g"}};
             }),
             .help = "h"}};
  }
};

TEST(Config, OneFieldListReadsAndWritesJson) {
  Sample sample;
  read_json(sample.fields(), R"({"rank": 7, "rate": 2, "list": [1, 2], "nested": {"inner": 9}})", "test");
  EXPECT_EQ(sample.rank, 7);
  EXPECT_EQ(sample.rate, 2);
  EXPECT_EQ(sample.inner, 9);
  read_json(sample.fields(), R"({"rank": "auto"})", "test");
  EXPECT_EQ(sample.rank, 0);
  Sample again;
  const std::string json = write_json(sample.fields());
  read_json(again.fields(), json, "test");
  EXPECT_EQ(write_json(again.fields()), json);
}

TEST(Config, NumbersThatJsonHasNotAreReadAsPythonWritesThem) {
  double single = 1;
  std::vector<double> list;
  std::string note;
  int64_t kept = 5, whole = 0;
  const Fields fields = {
      {"single", &single, ""}, {"list", &list, ""}, {"note", &note, ""}, {"kept", &kept, ""}, {"whole", &whole, ""}};
  read_json(fields, R"({"single": {"__float__": "-Infinity"}, "list": [0.0, Infinity, NaN], "kept": null,
                        "note": "\"Infinity, NaN", "whole": 2.0})",
            "test");
  EXPECT_EQ(single, -std::numeric_limits<double>::infinity());
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[1], std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(list[2]));
  EXPECT_EQ(note, "\"Infinity, NaN");
  EXPECT_EQ(kept, 5);
  EXPECT_EQ(whole, 2);
  list.pop_back();
  const std::string written = write_json(fields, 0);
  read_json(fields, written, "test");
  EXPECT_EQ(list[1], std::numeric_limits<float>::max()) << written;
  EXPECT_THROW(read_json(fields, R"({"single": {"__float__": "Infinit"}})", "test"), Error);
  EXPECT_THROW(read_json(fields, R"({"single": Infinit})", "test"), Error);
  EXPECT_THROW(read_json(fields, R"({"list": [1, "2"]})", "test"), Error);
}

TEST(Config, ErrorsNameTheKeyAndTheNearestKnownOne) {
  Sample sample;
  const auto message = [&](const std::string& json) -> std::string {
    try {
      read_json(sample.fields(), json, "test.json");
    } catch (const Error& problem) {
      return problem.what();
    }
    return "no error";
  };
  EXPECT_NE(message(R"({"widht": 1})").find("did you mean \"width\""), std::string::npos);
  EXPECT_NE(message(R"({"nested": {"iner": 1}})").find("inner"), std::string::npos);
  EXPECT_NE(message(R"({"width": 1.5})").find("width is 1.5, expected an integer"), std::string::npos);
  EXPECT_NE(message(R"({"width": 18446744073709551615})").find("expected an integer"), std::string::npos);
  EXPECT_NE(message(R"({"rank": "some"})").find("auto"), std::string::npos);
  EXPECT_NE(message(R"({"width": )").find("not JSON"), std::string::npos);
  EXPECT_NE(message("3").find("expected a JSON object"), std::string::npos);
  EXPECT_NE(message(std::string(1000, '[') + std::string(1000, ']')).find("levels deep"), std::string::npos);
  EXPECT_EQ(sample.width, 3);
}

}  // namespace
}  // namespace ssm
