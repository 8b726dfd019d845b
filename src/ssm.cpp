// The door's few classes over the rooms behind it.
#include "ssm.h"

#include "core/files.h"
#include "core/threads.h"
#include "engine/generator.h"
#include "engine/model_tokenizer.h"
#include "engine/state_file.h"
#include "eval/token_source.h"
#include "formats/checkpoint.h"
#include "mixers/mixer.h"
#include "models/model.h"
#include "ops/linear/linear.h"
#include "tokenizers/tokenizer.h"
#include "train/optimizer.h"

namespace ssm {
namespace {

ModelOptions model_options(const EngineOptions& options) {
  const Device device = Device::named(options.device);
  if (options.dtype == "auto")
    return {.device = device, .as_stored = !options.trainable && !device.is_ref(), .trainable = options.trainable};
  const auto dtype = dtype_named(options.dtype);
  require(dtype.has_value(), "dtype is \"", options.dtype, "\", expected f32, bf16, f16, f64 or auto");
  return {.device = device, .dtype = *dtype, .trainable = options.trainable};
}

}  // namespace

struct Engine::Parts {
  Parts(std::unique_ptr<Model> opened, std::unique_ptr<Tokenizer> its_tokenizer, int thread_count)
      : model(std::move(opened)), tokenizer(std::move(its_tokenizer)), threads(thread_count) {
    if (model->options().trainable) optimizer = std::make_unique<Optimizer>(model->params());
  }

  const Tokenizer& text_side() const {
    require(
        static_cast<bool>(tokenizer),
        problem.empty() ? "this model has no tokenizer; name one (EngineOptions::tokenizer), or give ids" : problem);
    return *tokenizer;
  }
  std::string bytes_of(int64_t id) const {
    return tokenizer && tokenizer->knows(id) ? tokenizer->bytes_of(id) : std::string();
  }

  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;  // null: ids alone
  std::string problem;                   // why the model's own tokenizer cannot be used; "": it has none
  Threads threads;
  std::unique_ptr<Optimizer> optimizer;
  int64_t steps = 0;
};

struct Session::Parts {
  explicit Parts(std::shared_ptr<Engine::Parts> of)
      : engine(std::move(of)),
        pool(engine->model->lm().state_spec(), 1, engine->model->options().device),
        generator(*engine->model, engine->threads, pool, pool.acquire()) {}

  std::shared_ptr<Engine::Parts> engine;
  StatePool pool;
  Generator generator;
};

// Engine --------------------------------------------------------------------------------------------------------------

Engine::Engine(std::shared_ptr<Parts> parts) : parts_(std::move(parts)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Engine Engine::open(const std::filesystem::path& model, const EngineOptions& options) {
  auto opened = Model::open(model, model_options(options));
  std::string problem;
  auto tokenizer = model_tokenizer_if_any(model, opened->config(), options.tokenizer, &problem);
  auto parts = std::make_shared<Parts>(std::move(opened), std::move(tokenizer), options.threads);
  parts->problem = problem;
  return Engine(std::move(parts));
}

Engine Engine::create(std::string_view config_json, uint64_t seed, const EngineOptions& options) {
  const ModelConfig config = ModelConfig::from_json(config_json, "config");
  constexpr int64_t kBytes = 256;
  const std::string spec = options.tokenizer.empty() && config.vocab_size == kBytes ? "bytes" : options.tokenizer;
  return Engine(std::make_shared<Parts>(Model::create(config, seed, model_options(options)),
                                        spec.empty() ? nullptr : open_tokenizer(spec), options.threads));
}

std::string Engine::config() const { return parts_->model->config().json(); }
int64_t Engine::parameters() const { return parts_->model->params().count(); }

Tensor Engine::logits(std::span<const int64_t> ids) const {
  const Model& model = *parts_->model;
  const auto count = static_cast<int64_t>(ids.size());
  require(count > 0, "no token ids; expected at least one");
  const Ctx ctx{.device = model.options().device, .threads = &parts_->threads};
  const Var hidden =
      model.lm().hidden(ctx, Tensor::of(ids, {count}), Seqs::dense(1, count), {}, LanguageModel::Rounding::none);
  return model.lm().logits(ctx, hidden).value.on(Device::cpu());
}

std::vector<int64_t> Engine::encode(std::string_view text) const { return parts_->text_side().encode(text); }
std::string Engine::decode(std::span<const int64_t> ids) const { return parts_->text_side().decode(ids); }

Score Engine::score(const std::filesystem::path& file) const {
  const Tokenizer& tokenizer = parts_->text_side();
  TextTokens text({file.string()}, tokenizer);
  const Perplexity result = perplexity(*parts_->model, parts_->threads,
                                       {[&](std::span<int64_t> out) { return text.next(out); }, text.origin()}, {},
                                       bytes_of_ids(text, &tokenizer, parts_->model->config()));
  return {.tokens = result.tokens, .bytes = result.bytes, .nats = result.total};
}

Session Engine::session() const { return Session(std::make_unique<Session::Parts>(parts_)); }

double Engine::train_step(const Tensor& ids, const TrainStep& step) {
  Model& model = *parts_->model;
  require(static_cast<bool>(parts_->optimizer), "train_step needs an engine with EngineOptions::trainable");
  require(ids && ids.rank() == 2 && ids.dtype() == DType::i64 && ids.size(0) > 0 && ids.size(1) > 1,
          "train_step expects i64 ids (s, t + 1)");
  const int64_t count = ids.size(0), length = ids.size(1) - 1;
  const OptimizerConfig config{
      .weight_decay = step.weight_decay, .beta1 = step.beta1, .beta2 = step.beta2, .eps = step.eps, .clip = step.clip};
  config.check();

  Tape tape;
  const Ctx ctx{.device = model.options().device, .threads = &parts_->threads, .tape = &tape};
  model.params().forget_gradients();
  const Var loss =
      model.lm().loss(ctx, ids.columns(0, length).clone().reshape({count * length}),
                      ids.columns(1, length + 1).clone().reshape({count * length}), Seqs::dense(count, length));
  const double value = loss.value.on(Device::cpu()).to(DType::f64).item<double>();
  tape.backward(loss);
  const Ctx update{.device = ctx.device, .threads = ctx.threads};
  parts_->optimizer->update(update, config, step.lr, step.lr, parts_->steps + 1);
  ++parts_->steps;
  return value;
}

void Engine::save(const std::filesystem::path& directory) const {
  write_directory(directory, [&](const Path& to) { parts_->model->save(to); });
}

// Session -------------------------------------------------------------------------------------------------------------

Session::Session(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

void Session::read(std::string_view text) {
  const Tokenizer& tokenizer = parts_->engine->text_side();
  read(tokens() == 0 ? tokenizer.encode_with_specials(text) : tokenizer.encode(text));
}

void Session::read(std::span<const int64_t> ids) { parts_->generator.read(ids); }

std::vector<float> Session::next_logits() { return parts_->generator.next_logits(); }

std::vector<int64_t> Session::write(const WriteOptions& options, const std::function<bool(const Token&)>& on_token) {
  const Engine::Parts& engine = *parts_->engine;
  GenerateOptions generate{.sampler = {.temperature = options.temperature,
                                       .top_k = options.top_k,
                                       .top_p = options.top_p,
                                       .min_p = options.min_p,
                                       .repetition_penalty = options.repetition_penalty,
                                       .frequency_penalty = options.frequency_penalty,
                                       .presence_penalty = options.presence_penalty},
                           .seed = options.seed,
                           .max_tokens = options.max_tokens,
                           .logprobs = options.logprobs || options.top_logprobs > 0,
                           .top_logprobs = options.top_logprobs};
  if (!options.ignore_eos) generate.end_ids = end_ids(engine.model->config(), engine.tokenizer.get());
  generate.sampler.check();
  require(options.top_logprobs >= 0, "top_logprobs is ", options.top_logprobs, ", expected 0 or more");
  std::vector<int64_t> ids;
  parts_->generator.write(generate, [&](const WrittenToken& written) {
    ids.push_back(written.id);
    if (!on_token) return true;
    Token token{.id = written.id, .bytes = engine.bytes_of(written.id), .logprob = written.logprob};
    for (const TokenLogprob& one : written.top)
      token.top.push_back({.id = one.id, .bytes = engine.bytes_of(one.id), .logprob = one.logprob});
    return on_token(token);
  });
  return ids;
}

int64_t Session::tokens() const { return parts_->generator.tokens(); }

Session Session::fork() {
  auto copy = std::make_unique<Parts>(parts_->engine);
  copy->generator.restore(parts_->generator.snapshot());
  return Session(std::move(copy));
}

void Session::save(const std::filesystem::path& file) {
  write_state_file(file, *parts_->engine->model, parts_->generator.snapshot());
}

void Session::load(const std::filesystem::path& file) {
  parts_->generator.restore(read_state_file(file, *parts_->engine->model));
}

// Network -------------------------------------------------------------------------------------------------------------

struct Network::Parts {
  Parts(std::filesystem::path from, const EngineOptions& options)
      : path(std::move(from)), model(model_options(options)), tensors(read_weights(path)), threads(options.threads) {
    require(!options.trainable, path.string(), ": a Network is not trainable");
  }
  Ctx ctx() { return {.device = model.device, .threads = &threads}; }
  DType working() const {  // of activations
    return model.device.is_cuda() ? model.dtype : accumulator_of(model.dtype);
  }
  Tensor here(const Tensor& tensor) const { return tensor.to(working()).on(model.device); }
  const Tensor& find(const std::string& name) const {
    const auto found = tensors.find(name);
    require(found != tensors.end(), path.string(), " has no tensor ", name);
    return found->second;
  }

  std::filesystem::path path;
  ModelOptions model;
  TensorMap tensors;
  Threads threads;
};

struct MixerStream::Parts {
  Parts(std::shared_ptr<Network::Parts> of, std::shared_ptr<const Mixer> its_mixer, int64_t d)
      : network(std::move(of)),
        mixer(std::move(its_mixer)),
        d_model(d),
        pool(mixer->state(), 1, network->model.device) {
    slot = pool.acquire();
  }

  std::shared_ptr<Network::Parts> network;
  std::shared_ptr<const Mixer> mixer;
  int64_t d_model;
  StatePool pool;
  StatePool::Slot slot;
};

Network::Network(std::shared_ptr<Parts> parts) : parts_(std::move(parts)) {}
Network::Network(Network&&) noexcept = default;
Network& Network::operator=(Network&&) noexcept = default;
Network::~Network() = default;

Network Network::open(const std::filesystem::path& weights, const EngineOptions& options) {
  return Network(std::make_shared<Parts>(weights, options));
}

std::vector<std::string> Network::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : parts_->tensors) names.push_back(name);
  return names;
}

Tensor Network::tensor(std::string_view name) const { return parts_->find(std::string(name)).to(DType::f32); }

Tensor Network::linear(std::string_view name, const Tensor& x) const {
  const std::string prefix(name);
  const auto bias = parts_->tensors.find(prefix + ".bias");
  Var bias_here;
  if (bias != parts_->tensors.end())
    bias_here.value = bias->second.to(accumulator_of(parts_->working())).on(parts_->model.device);
  return ssm::linear(parts_->ctx(), {parts_->here(x), {}}, {parts_->here(parts_->find(prefix + ".weight")), {}},
                     bias_here)
      .value.on(Device::cpu())
      .to(DType::f32);
}

MixerStream Network::mixer(std::string_view name, std::string_view kind, int64_t d_model,
                           std::string_view config) const {
  require(d_model > 0, name, ": d_model is ", d_model, ", expected at least 1");
  const auto settings = mixer_kind(kind).config();
  read_settings(*settings, config, name);
  ParamStore store({.dtype = parts_->model.dtype, .source = &parts_->tensors, .device = parts_->model.device});
  try {
    std::shared_ptr<const Mixer> mixer = settings->build(Params(store).sub(name), d_model, 1);
    return MixerStream(std::make_unique<MixerStream::Parts>(parts_, std::move(mixer), d_model));
  } catch (const Error& problem) {
    throw Error(parts_->path.string(), ": ", problem.what());
  }
}

MixerStream::MixerStream(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
MixerStream::MixerStream(MixerStream&&) noexcept = default;
MixerStream& MixerStream::operator=(MixerStream&&) noexcept = default;
MixerStream::~MixerStream() = default;

Tensor MixerStream::forward(const Tensor& x) {
  require(x && x.rank() == 2 && x.size(1) == parts_->d_model, "the input of a mixer is ", x.shape(), ", expected (t, ",
          parts_->d_model, ")");
  if (x.size(0) == 0) return x;
  const Var u{parts_->network->here(x), {}};
  return parts_->mixer->forward(parts_->network->ctx(), u, Seqs::dense(1, x.size(0)), parts_->pool.state())
      .value.on(Device::cpu())
      .to(DType::f32);
}

MixerStream MixerStream::fork() const {
  auto copy = std::make_unique<Parts>(parts_->network, parts_->mixer, parts_->d_model);
  copy->pool.restore(copy->slot, parts_->pool.save(parts_->slot));
  return MixerStream(std::move(copy));
}

void MixerStream::reset() { parts_->pool.zero(parts_->slot); }

int64_t MixerStream::state_bytes() const { return static_cast<int64_t>(parts_->pool.save(parts_->slot).size()); }

}  // namespace ssm
