// The papers' settings: Gu & Dao 2023, appendix E.1, for the copying tasks and induction heads; Dao & Gu 2024, section
// 9.1, for MQAR.
#include "task/task_config.h"

#include <algorithm>
#include <array>

#include "core/error.h"

namespace ssm {
namespace {

constexpr std::array<const char*, 4> kTasks = {"selective-copying", "copying", "induction-heads", "mqar"};

template <class Number>
void unless_given(Number& value, Number published) {
  if (value == 0) value = published;
}

}  // namespace

TaskKind task_kind(std::string_view name) {
  std::vector<std::string> known(kTasks.begin(), kTasks.end());
  std::string all;
  for (size_t i = 0; i < kTasks.size(); ++i) {
    if (name == kTasks[i]) return static_cast<TaskKind>(i);
    all += text(i == 0 ? "" : ", ", kTasks[i]);
  }
  const std::string near = nearest(name, known);
  throw Error("task is \"", name, "\", expected one of ", all, near.empty() ? "" : "; did you mean " + near + "?");
}

Fields TaskConfig::fields() {
  Fields all = {
      {"task", &task, "selective-copying, copying, induction-heads or mqar"},
      {"mixer", &mixer,
       "what mixes tokens: mamba, mamba2, attention, lstm, conv, s4, s4d, s6, h3-s4, h3-s4d, h3-s6, mamba-s4, "
       "mamba-s4d"},
      {"ssm_cfg", &ssm_cfg, "settings of the mixer as a JSON object, as in config.json"},
      {"positions", &positions, "of attention: none, learned, rope or alibi"},
      {"d_model", &d_model, "model width; 0: the paper's"},
      {"layers", &layers, "blocks"},
      {"heads", &heads, "of attention"},
      {"d_intermediate", &d_intermediate, "width of an MLP after each mixer; 0: none"},
      {"vocab", &vocab, "tokens, the special ones included; 0: the paper's"},
      {"length", &length, "noise tokens of the copying tasks, all tokens of the others; 0: the paper's"},
      {"memory", &memory, "symbols (copying) or pairs (mqar) to remember; 0: the paper's"},
      {"triggers", &triggers, "induction-heads: triggers before the last one, in half of the sequences"},
      {"answers", &answers, "induction-heads: positions that are trained: last or all"},
      {"batch", &batch, "sequences in a batch; 0: the paper's"},
      {"curriculum", &curriculum, "steps on which lengths double on the way to --length; 0: full length at once"},
      {"shortest", &shortest, "length at which the curriculum begins"}};
  for (Field& field : rate.fields()) all.push_back(std::move(field));
  for (Field& field : optimizer.fields()) all.push_back(std::move(field));
  all.push_back(cuda_graph_field(&cuda_graph));
  const Fields rest = {
      {"minutes", &minutes, "stop training after this many minutes; 0: no limit"},
      {"eval_every", &eval_every, "steps between evaluations; 0: a hundredth of all"},
      {"eval_length", &eval_length, "length of the held-back sequences on the way; 0: that of training"},
      {"eval_sequences", &eval_sequences, "held-back sequences"},
      {"stop_after", &stop_after,
       "stop after this many evaluations at 100% in a row, once the curriculum is over; 0: never"},
      {"test_lengths", &test_lengths, "lengths of the final test; induction-heads: 2^6 to 2^20"},
      {"test_tokens", &test_tokens, "tokens of one test length at most: fewer long sequences"}};
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

void TaskConfig::settle() {
  const auto within = [](const char* name, int64_t value, int64_t low, int64_t high) {
    require(low <= value && value <= high, name, " is ", value, ", expected ", low, " to ", high);
  };
  const TaskKind kind = task_kind(task);
  const std::string layer = mixer_named(mixer).layer;
  const bool selects = layer == "Mamba1" || layer == "Mamba2";
  require(positions == "none" || positions == "learned" || positions == "rope" || positions == "alibi",
          "positions is \"", positions, "\", expected none, learned, rope or alibi");
  require(answers == "last" || answers == "all", "answers is \"", answers, "\", expected last or all");
  switch (kind) {
    case TaskKind::selective_copying:
    case TaskKind::copying:
      unless_given(length, int64_t{4096});
      unless_given(memory, int64_t{16});
      unless_given(batch, int64_t{64});
      unless_given(rate.steps, int64_t{400000});
      unless_given(rate.lr, 1e-4);
      unless_given(d_model, int64_t{64});
      break;
    case TaskKind::induction_heads:
      unless_given(length, int64_t{256});
      unless_given(memory, int64_t{1});
      unless_given(batch, int64_t{8});
      unless_given(rate.steps, int64_t{204800});  // 25 epochs of 8192
      unless_given(rate.lr, selects ? 1e-3 : 2e-4);
      unless_given(d_model, int64_t{selects ? 64 : 128});
      if (test_lengths.empty())
        for (int power = 6; power <= 20; ++power) test_lengths.push_back(int64_t{1} << power);
      break;
    case TaskKind::mqar:
      unless_given(vocab, int64_t{8192});
      unless_given(length, int64_t{256});
      unless_given(memory, length / 4);
      unless_given(batch, int64_t{64});
      unless_given(rate.steps, int64_t{50000});
      unless_given(rate.lr, 1e-3);
      unless_given(d_model, int64_t{64});
      break;
  }
  unless_given(vocab, int64_t{16});
  if (eval_every == 0) eval_every = std::max<int64_t>(1, rate.steps / 100);
  unless_given(eval_length, length);
  if (test_lengths.empty()) test_lengths = {length};
  shape(length).check();
  shape(eval_length).check();
  for (const int64_t one : test_lengths) shape(one).check();
  within("d_model", d_model, 1, 1 << 16);
  within("layers", layers, 1, 1 << 10);
  within("heads", heads, 1, d_model);
  within("d_intermediate", d_intermediate, 0, 1 << 20);
  within("batch", batch, 1, int64_t{1} << 24);
  require(batch <= (int64_t{1} << 28) / shape(length).inputs(), "batch is ", batch, ": with ", shape(length).inputs(),
          " tokens a sequence expected at most ", (int64_t{1} << 28) / shape(length).inputs());
  within("curriculum", curriculum, 0, rate.steps);
  if (curriculum > 0) within("shortest", shortest, 4, length);
  within("eval_every", eval_every, 1, INT64_MAX);
  within("eval_sequences", eval_sequences, 1, 1 << 20);
  within("stop_after", stop_after, 0, INT64_MAX);
  within("test_tokens", test_tokens, 1, INT64_MAX);
  require(minutes >= 0, "minutes is ", minutes, ", expected at least 0");
  check_cuda_graph(cuda_graph);
  rate.check();
  optimizer.check();
}

TaskShape TaskConfig::shape(int64_t of_length) const {
  return {.kind = task_kind(task),
          .vocab = vocab,
          .length = of_length,
          .memory = memory,
          .triggers = triggers,
          .every_token = answers == "all"};
}

ModelConfig TaskConfig::model() const {
  ModelConfig config;
  const MixerName& named = mixer_named(mixer);
  config.d_model = d_model;
  config.n_layer = layers;
  config.vocab_size = vocab;
  config.d_intermediate = d_intermediate;
  config.tie_embeddings = false;
  MixerConfig* settings = nullptr;
  if (named.layer == kAttention) {
    for (int64_t i = 0; i < layers; ++i) config.attn_layer_idx.push_back(i);
    settings = config.attention.get();
    require(d_model % heads == 0, "heads is ", heads, ", expected a divisor of the model width ", d_model);
    read_json(settings->fields(),
              text(R"({"num_heads": )", heads, R"(, "rotary_emb_dim": )", positions == "rope" ? d_model / heads : 0,
                   R"(, "alibi": )", positions == "alibi" ? "true" : "false", "}"),
              "heads");
    if (positions == "learned")
      config.learned_positions =
          shape(std::max({length, eval_length, *std::max_element(test_lengths.begin(), test_lengths.end())})).inputs();
  } else {
    config.layer = named.layer;
    config.mixer = named.config();
    settings = config.mixer.get();
  }
  if (!ssm_cfg.empty()) read_settings(*settings, ssm_cfg, "ssm_cfg");
  return config;
}

}  // namespace ssm
