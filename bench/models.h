// Whole models: reading prompts, writing, training steps, where a step's time goes, and what lengths do to it. Each
// adds its rows and, for
// --json, its numbers.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "bench/harness.h"
#include "data/loader.h"
#include "models/model.h"
#include "train/checkpoint.h"

namespace ssm::bench {

using Json = nlohmann::ordered_json;

// On the cpu: a prompt in one pass beside its matrix products alone, and the share of the scans.
void bench_prefill(Bench& bench, const Model& model, const std::string& name, int64_t prompt, Json& out);
// On the cpu: `sequences` of the model write `tokens` each, in step, beside reading weights and states from memory.
void bench_decode(Bench& bench, const Model& model, const std::string& name, int64_t sequences, int64_t tokens,
                  Json& out);

struct GenerateCase {
  std::string model;
  int64_t prompt, sequences;
  std::string reading() const { return text(model, ", ", sequences, " x ", prompt); }
  std::string writing() const { return text(model, ", ", sequences, " after ", prompt); }
};
std::string read_name(DType dtype);
std::string write_name(DType dtype);
// Through the engine, as `ssm generate` does it: the prompts are read, then written on greedily in step.
void bench_generate(Bench& bench, const Model& model, const GenerateCase& c, int64_t tokens, Json& out);

struct TrainCase {
  std::string preset;
  int64_t batch, length;
  std::string shape() const { return text(preset, ", ", batch, " x ", length); }
};
// Steps of the trainer; f32 on the cpu beside their matrix products alone, bench.dtype() with f32 masters on a GPU.
void bench_train(Bench& bench, const TrainCase& c, Json& out);
// One step taken apart: the time of each op, forward and backward.
void bench_step(Bench& bench, const TrainCase& c, Json& out);

// Blocks of one width around different mixers, as the length grows.
struct LengthsCase {
  std::vector<std::string> mixers;
  int64_t d_model = 256, layers = 2;
  std::vector<int64_t> lengths;
  int64_t written = 64;  // tokens after each
  double slowest = 10;   // seconds of a step or prompt, past which longer ones are left out
};
// Each mixer's state, writing, reading and training, at each length. On a GPU those that run there.
void bench_lengths(Bench& bench, const LengthsCase& c, Json& out);

// The same batch again and again, so that the loss must fall.
class OneBatch final : public Dataset {
 public:
  OneBatch(int64_t sequences, int64_t length, int64_t vocab);
  TokenBatch batch(int64_t) const override { return batch_; }
  int64_t steps() const override { return -1; }
  const TokenBatch& only() const { return batch_; }

 private:
  TokenBatch batch_;
};
TrainingState constant_rate();

// A preset with random weights. On a GPU those of one layer are given to all: drawing billions of numbers would take
// minutes, and no kernel is faster for it.
std::unique_ptr<Model> random_model(const Bench& bench, const std::string& preset, bool trainable);
std::unique_ptr<Model> random_model(const Bench& bench, const ModelConfig& config, bool trainable);
Tensor random_ids(int64_t count, int64_t vocab);

// The matrices of a model's linear layers, (out, in). The head is apart: prefill needs one row of it.
struct Projections {
  explicit Projections(const Model& model);
  std::vector<Matrix<float>> layers;
  Matrix<float> head;
};

// Bare matrix products of the shapes a pass over `t` tokens needs, operands where the model has them or in scratch.
class BarePasses {
 public:
  BarePasses(const Projections& projections, int64_t t, int threads);
  void forward() const;
  void train() const;  // y = x W^T, dx = dy W, dW = dy^T x for every layer and the head
  double forward_operations() const;
  double train_operations() const;

 private:
  double operations(const Matrix<float>& weight) const;
  Matrix<float> columns(const Tensor& of, int64_t count) const { return {of.data<float>(), t_, count, count}; }
  void multiply(const Matrix<float>& weight) const;
  void differentiate(const Matrix<float>& weight) const;

  const Projections& projections_;
  int64_t t_;
  int threads_;
  Tensor a_, b_, gradient_;
};

}  // namespace ssm::bench
