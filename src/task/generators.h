// The four synthetic tasks as data: sequence i of a stream is a function of the seed, the stream and i, so training
// data never repeats, held-back sequences are fixed, and nothing is stored.
//
//   selective-copying   `memory` symbols at random places among `length` noise tokens, then `memory` markers; at the
//                       markers the symbols are answered in order (Gu & Dao 2023, section 4.1.1; S4's generator with
//                       variable = true)
//   copying             the same with all symbols in front, so that a fixed delay solves it
//   induction-heads     random symbols, a trigger somewhere with the answer behind it, a trigger at the end: answer it
//                       (Gu & Dao 2023, section 4.1.2; safari's generator)
//   mqar                `memory` pairs of key and value, then every key once more among `length` tokens in all: answer
//                       each with its value (Arora et al. 2023, "Zoology")
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/loader.h"

namespace ssm {

enum class TaskKind { selective_copying, copying, induction_heads, mqar };

struct TaskShape {
  TaskKind kind = TaskKind::selective_copying;
  int64_t vocab = 16;
  int64_t length = 4096;  // noise tokens of the copying tasks; all inputs of the others
  int64_t memory = 16;    // symbols or pairs to remember; without meaning for induction-heads
  int64_t triggers = 1;   // times that the trigger comes before the end, in half of the sequences; in the others once
  bool every_token = false;  // induction-heads: every position has its next token as a target, not only the last

  int64_t inputs() const;  // tokens of a sequence
  void check() const;      // throws Error, opened by a field's name, on sizes that make no sense
};

// Fills one sequence: `ids` and `targets` have inputs() elements; a position without an answer has kIgnoredTarget.
void make_sequence(const TaskShape& shape, uint64_t seed, const std::string& stream, int64_t index,
                   std::span<int64_t> ids, std::span<int64_t> targets);

// Sequences [first, first + count) of a stream as one batch.
TokenBatch make_batch(const TaskShape& shape, uint64_t seed, const std::string& stream, int64_t first, int64_t count);

// Endless fresh batches. With a curriculum of `curriculum` steps lengths double on the way from `shortest` to
// shape.length, each for an equal share of them; mqar's pairs grow with them.
class TaskStream final : public Dataset {
 public:
  TaskStream(const TaskShape& shape, uint64_t seed, int64_t batch, int64_t curriculum = 0, int64_t shortest = 64)
      : shape_(shape), seed_(seed), batch_(batch), curriculum_(curriculum), shortest_(shortest) {}
  TokenBatch batch(int64_t step) const override;
  int64_t steps() const override { return -1; }
  int64_t length(int64_t step) const;

 private:
  TaskShape shape_;
  uint64_t seed_;
  int64_t batch_, curriculum_, shortest_;
};

}  // namespace ssm
