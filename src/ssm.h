// The library's door: load a model, run it, let it write, keep and fork the state of a sequence, train. This header
// changes with care; all others may change at any time.
//
//   ssm::Engine engine = ssm::Engine::open("runs/shakespeare");
//   ssm::Session session = engine.session();
//   session.read("ROMEO:");
//   session.write({.max_tokens = 200}, [](const ssm::Token& token) { std::cout << token.bytes; return true; });
//
// Errors of the user (files, sizes, ids) are thrown as ssm::Error. An Engine and its Sessions share one set of threads
// and are for one thread at a time; weights that train_step changes are those that sessions run with.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"

namespace ssm {

struct EngineOptions {
  std::string device = "auto";  // auto (a GPU if there is one), cpu, cuda, cuda:N, ref
  std::string dtype = "auto";   // of the weights: as stored (f32 for training and ref), f32, bf16, f16; f64 on ref
  int threads = 0;              // 0: one a core
  bool trainable = false;       // for train_step: weights are copied, gradients kept
  std::string tokenizer = {};   // a path, "bytes" or "dna", for a model that comes without one; empty: the model's own
};

// How a session writes; README.md of engine/ describes the sampling.
struct WriteOptions {
  int64_t max_tokens = 256;
  double temperature = 1.0;  // 0: greedy
  int64_t top_k = 0;
  double top_p = 1.0, min_p = 0.0;
  double repetition_penalty = 1.0, frequency_penalty = 0.0, presence_penalty = 0.0;
  uint64_t seed = 0;
  bool logprobs = false;     // fill Token::logprob
  int64_t top_logprobs = 0;  // and Token::top, with so many of the likeliest
  bool ignore_eos = false;   // go on after a token that ends a text
};

struct Token {
  int64_t id = 0;
  std::string bytes = {};  // what it stands for, perhaps half a character; "" when the model has no tokenizer
  double logprob = 0;      // natural; the model's own, before temperature and penalties
  std::vector<Token> top = {};
};

// How well a model predicts a text: each token but the first from all before it.
struct Score {
  int64_t tokens = 0;  // scored
  int64_t bytes = 0;   // that they stand for
  double nats = 0;     // -log p, in all

  double perplexity() const { return std::exp(nats / static_cast<double>(tokens)); }
  double bits_per_byte() const { return nats / std::log(2.0) / static_cast<double>(bytes); }
};

// One update by AdamW.
struct TrainStep {
  double lr = 1e-3, weight_decay = 0.1, beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double clip = 1.0;  // of the global gradient norm; 0: off
};

// One sequence with its state. Copying is fork().
class Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  void read(std::string_view text);
  void read(std::span<const int64_t> ids);
  // Goes on after what was read and written so far, until on_token returns false; returns the ids written.
  std::vector<int64_t> write(const WriteOptions& options, const std::function<bool(const Token&)>& on_token = nullptr);
  // The logits of the next token (vocab), for those who choose it themselves and then read({&id, 1}) it.
  std::vector<float> next_logits();

  int64_t tokens() const;  // read and written
  Session fork();          // a second sequence with the same past
  // The state as a file whose size does not grow with the sequence: `ssm generate --state-in` reads it too. load
  // replaces this session's past by the file's; the file must come from the same model.
  void save(const std::filesystem::path& file);
  void load(const std::filesystem::path& file);

 private:
  friend class Engine;
  struct Parts;
  explicit Session(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// A model ready to run. Sessions keep what they need of it alive.
class Engine {
 public:
  // A MODEL: a directory, a run, or a weights file with config.json beside it.
  static Engine open(const std::filesystem::path& model, const EngineOptions& options = {});
  // Random initial weights for a config.json, given as text.
  static Engine create(std::string_view config_json, uint64_t seed, const EngineOptions& options = {});
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  std::string config() const;                                // as JSON
  int64_t parameters() const;                                // how many numbers
  std::vector<int64_t> encode(std::string_view text) const;  // text to ids, without special tokens around it
  std::string decode(std::span<const int64_t> ids) const;    // and back
  Tensor logits(std::span<const int64_t> ids) const;         // (t, vocab), with the rows that pad the vocabulary
  Score score(const std::filesystem::path& file) const;      // of a text of any length, at constant memory
  Session session() const;
  // One optimizer step on rows of ids, (s, t + 1) i64: t inputs and, one further, t targets. Returns the mean loss, in
  // nats a token, before the update. Needs EngineOptions::trainable.
  double train_step(const Tensor& ids, const TrainStep& step = {});
  void save(const std::filesystem::path& directory) const;  // a MODEL; the directory appears whole

 private:
  friend class Session;
  struct Parts;
  explicit Engine(std::shared_ptr<Parts> parts);
  std::shared_ptr<Parts> parts_;
};

// Models that are not language models ---------------------------------------------------------------------------------

// One sequence through one mixer, its state beside it: whole sequences, pieces and single samples are the same call.
class MixerStream {
 public:
  MixerStream(MixerStream&&) noexcept;
  MixerStream& operator=(MixerStream&&) noexcept;
  ~MixerStream();

  Tensor forward(const Tensor& x);  // f32 (t, d_model) -> (t, d_model); the next call goes on after these t samples
  MixerStream fork() const;         // a second sequence with the same past
  void reset();                     // back to the zero state
  int64_t state_bytes() const;

 private:
  friend class Network;
  struct Parts;
  explicit MixerStream(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// Named weights of a file, and the layers that use them: what a classifier or a filter around a mixer is made of.
//
//   const ssm::Network net = ssm::Network::open("spotter.safetensors");
//   ssm::MixerStream mamba = net.mixer("mamba", "Mamba1", 64);
//   const ssm::Tensor features = mamba.forward(net.linear("linear_in", frames));
class Network {
 public:
  static Network open(const std::filesystem::path& weights, const EngineOptions& options = {});  // safetensors or .bin
  Network(Network&&) noexcept;
  Network& operator=(Network&&) noexcept;
  ~Network();

  std::vector<std::string> names() const;
  Tensor tensor(std::string_view name) const;                   // f32, as stored; throws Error when there is none
  Tensor linear(std::string_view name, const Tensor& x) const;  // x (t, in) name.weight^T + name.bias, if there is one
  // The mixer of width d_model whose parameters are called name.*; `kind` and `config` are what config.json has as
  // ssm_cfg.layer and as the rest of ssm_cfg.
  MixerStream mixer(std::string_view name, std::string_view kind, int64_t d_model,
                    std::string_view config = "{}") const;

 private:
  friend class MixerStream;
  struct Parts;
  explicit Network(std::shared_ptr<Parts> parts);
  std::shared_ptr<Parts> parts_;
};

}  // namespace ssm
