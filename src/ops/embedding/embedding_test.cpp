#include "ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include "tests/op_check.h"

namespace ssm::test {
namespace {

// Ids with repeats, the first and the last row among them.
Tensor some_ids(int64_t t, int64_t vocab) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < t; ++i) ids.push_back(i == 0 ? vocab - 1 : i * i % vocab);
  return Tensor::of(ids);
}

OpCase embedding_case(int64_t t, int64_t vocab, int64_t d) {
  return {.name = text("embedding t=", t, " vocab=", vocab, " d=", d),
          .inputs = {{"weight", {vocab, d}, -1, 1, Role::weight}},
          .call =
              [t, vocab](Ctx& ctx, const std::vector<Var>& in) {
                return std::vector<Var>{embedding(ctx, some_ids(t, vocab), in[0])};
              },
          .reduction = t};
}

TEST(Embedding, EveryDeviceAgreesOnUglySizes) {
  for (const auto& [t, vocab, d] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1},
                                    {1, 5, 7},
                                    {7, 3, 16},
                                    {63, 50, 63},
                                    {64, 257, 64},
                                    {65, 5, 65},
                                    {130, 11, 131},
                                    {0, 4, 4}})
    check_op(embedding_case(t, vocab, d));
}

TEST(Embedding, StorageDtypesAreWidened) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  for_each_simd_target([&](const std::string& target) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      for (const int64_t d : {1, 16, 37}) {
        const Tensor weight = random_tensor("weight", {9, d}, dtype), ids = some_ids(6, 9);
        const Var y = embedding(ctx, ids, {weight, {}}), expected = embedding(ctx, ids, {weight.to(DType::f32), {}});
        EXPECT_EQ(y.value.dtype(), DType::f32);
        expect_near(y.value, expected.value, 0, text(name_of(dtype), " d=", d, " on ", target));
      }
    }
  });
}

TEST(Embedding, GradientIsAddedToWhatIsThere) {
  for (const Device device : {Device::ref(), Device::cpu()}) {
    Tape tape;
    const Ctx ctx{device, &test_threads(), &tape};
    const Var weight = tape.variable(random_tensor("weight", {5, 3}, DType::f32));
    const Tensor before = random_tensor("before", {5, 3}, DType::f32), dy = random_tensor("dy", {4, 3}, DType::f32);
    GradOut(weight.grad).out.copy_from(before);
    const std::vector<int64_t> ids = {2, 0, 2, 4};
    tape.backward({{embedding(ctx, Tensor::of(ids), weight), dy}});
    const Tensor expected = before.clone();
    for (size_t t = 0; t < ids.size(); ++t) {
      const auto row = static_cast<int64_t>(t);
      expected.rows(ids[t], ids[t] + 1).add(dy.rows(row, row + 1));
    }
    expect_near(weight.grad->value, expected, 0, "gradient");
  }
}

TEST(Embedding, GradientDoesNotDependOnTheNumberOfThreads) {
  const Tensor weight = random_tensor("weight", {17, 200}, DType::f32),
               dy = random_tensor("dy", {300, 200}, DType::f32);
  Tensor first;
  for (const int count : {1, 2, 5}) {
    Threads threads(count);
    Tape tape;
    const Var var = tape.variable(weight);
    tape.backward({{embedding(Ctx{Device::cpu(), &threads, &tape}, some_ids(300, 17), var), dy}});
    if (!first) first = var.grad->value;
    expect_near(var.grad->value, first, 0, text(count, " threads"));
  }
}

TEST(Embedding, IdsOutsideTheVocabularyAreErrors) {
  const Ctx ctx{Device::cpu(), &test_threads()};
  const Var weight{Tensor::zeros({4, 2}, DType::f32), {}};
  for (const int64_t wrong : {int64_t{-1}, int64_t{4}, int64_t{1} << 40}) {
    try {
      embedding(ctx, Tensor::of(std::vector<int64_t>{0, 3, wrong}), weight);
      ADD_FAILURE() << "id " << wrong << " was accepted";
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find(text("id ", wrong, " at position 2")), std::string::npos) << message;
      EXPECT_NE(message.find("vocabulary of 4"), std::string::npos) << message;
    }
  }
  EXPECT_THROW(embedding(ctx, Tensor::zeros({3}, DType::i32), weight), Error);
}

}  // namespace
}  // namespace ssm::test
