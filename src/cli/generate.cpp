// `ssm generate`: continue a prompt. Text streams to stdout as it is written: bytes of tokens -> stop texts -> whole
// UTF-8 characters.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "engine/generator.h"
#include "engine/model_tokenizer.h"
#include "engine/state_file.h"
#include "engine/stop_text.h"
#include "formats/npy.h"
#include "tokenizers/utf8_stream.h"

namespace ssm::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What becomes of written tokens: text on stdout while it grows, or a line a token, or nothing until the end.
class Output {
 public:
  enum class Form { text, lines, collected };

  Output(const Tokenizer* tokenizer, const std::vector<std::string>& stops, Form form)
      : tokenizer_(tokenizer), stops_(stops), form_(form) {}

  void add(const WrittenToken& token, bool is_end_of_text) {
    ids.push_back(token.id);
    logprobs.push_back(token.logprob);
    const std::string bytes = tokenizer_ && !is_end_of_text ? tokenizer_->bytes_of(token.id) : "";
    if (form_ == Form::lines) print_line(token, bytes);
    if (tokenizer_)
      add_text(characters_.push(stops_.push(bytes)));
    else if (form_ == Form::text)
      print((ids.size() > 1 ? " " : "") + std::to_string(token.id));
  }

  // On a terminal the prompt of the shell comes on a line of its own; elsewhere the text stays as written.
  void finish() {
    if (tokenizer_) add_text(characters_.push(stops_.finish()) + characters_.finish());
    const bool open_line = tokenizer_ ? !text.empty() && text.back() != '\n' : !ids.empty();
    if (form_ == Form::text && open_line && (!tokenizer_ || stdout_is_terminal())) print("\n");
  }

  bool stopped() const { return stops_.stopped(); }

  std::string text;
  std::vector<int64_t> ids;
  std::vector<double> logprobs;

 private:
  void add_text(const std::string& piece) {
    text += piece;
    if (form_ == Form::text) print(piece);
  }

  static void print_line(const WrittenToken& token, const std::string& bytes) {
    char number[32];
    std::snprintf(number, sizeof number, "%.6f", token.logprob);
    print(std::to_string(token.id) + "\t" + number + "\t" + one_line(bytes) + "\n");
  }

  const Tokenizer* tokenizer_;
  StopText stops_;
  Utf8Stream characters_;
  Form form_;
};

class Generate : public Command {
 public:
  std::string name() const override { return "generate"; }
  std::string summary() const override { return "continue a prompt, streaming"; }
  std::string example() const override {
    return "ssm generate --model runs/shakespeare --prompt 'ROMEO:' --max-tokens 400 --temperature 0.8";
  }

  Fields fields() override {
    Fields all = {{.name = "model", .target = &model_, .help = "a model's directory or weights file", .required = true},
                  {"prompt", &prompt_, "text to continue"},
                  {"prompt_file", &prompt_file_, "file with it, every byte as it is; - reads standard input"},
                  {"ids", &ids_, "token ids to continue: integers (t) in a .npy file"},
                  {"max_tokens", &options_.max_tokens, "tokens to write at most"}};
    for (Field& field : options_.sampler.fields()) all.push_back(std::move(field));
    const Fields rest = {
        {"stop", &stops_, "end before this text; several may be given"},
        {"logprobs", &options_.logprobs, "a line a token: id, log probability, text; with --json a list"},
        {"state_in", &state_in_, "go on where the run that wrote this file ended"},
        {"state_out", &state_out_, "keep the state of the sequence for --state-in"},
        {"ids_out", &ids_out_, "written token ids: i64 (t) as .npy"}};
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  }

  int run(const Invocation& invocation) override {
    check_options(invocation);
    const auto model = Model::open(model_, model_options(invocation.common));
    const auto tokenizer = invocation.has("ids") || !has_prompt(invocation)
                               ? model_tokenizer_if_any(model_, model->config())
                               : model_tokenizer(model_, model->config());
    require(tokenizer || stops_.empty(), "--stop needs text, and the tokenizer of ", model_, " cannot be read");
    options_.seed = static_cast<uint64_t>(invocation.common.seed);
    options_.end_of_text = tokenizer ? tokenizer->end_of_text() : std::nullopt;
    const std::vector<int64_t> prompt = prompt_ids(invocation, model->config(), tokenizer.get());

    Threads threads(static_cast<int>(invocation.common.threads));
    StatePool pool(model->lm().state_spec(), 1);
    Generator generator(*model, threads, pool, pool.acquire());
    if (!state_in_.empty()) generator.restore(read_state_file(state_in_, *model));
    const auto reading = Clock::now();
    read(generator, prompt, invocation.common.quiet);
    const double prompt_seconds = seconds_since(reading);

    const auto form = invocation.common.json ? Output::Form::collected
                      : options_.logprobs    ? Output::Form::lines
                                             : Output::Form::text;
    Output output(tokenizer.get(), stops_, form);
    const auto writing = Clock::now();
    const Finish finish = generator.write(options_, [&](const WrittenToken& token) {
      output.add(token, options_.end_of_text == token.id);
      return !output.stopped() && !interrupted();
    });
    const double seconds = seconds_since(writing);
    output.finish();

    if (!ids_out_.empty()) write_npy(ids_out_, Tensor::of(output.ids));
    if (!state_out_.empty()) write_state_file(state_out_, *model, generator.snapshot());
    const bool cut = finish == Finish::stopped && !output.stopped();
    const double rate = seconds > 0 ? static_cast<double>(output.ids.size()) / seconds : 0;
    if (invocation.common.json) {
      Json result = {{"text", output.text},
                     {"ids", output.ids},
                     {"finish_reason", cut                        ? "interrupted"
                                       : finish == Finish::length ? "length"
                                                                  : "stop"},
                     {"prompt_tokens", prompt.size()},
                     {"tokens", output.ids.size()},
                     {"seconds", seconds},
                     {"tokens_per_second", rate},
                     {"prompt_seconds", prompt_seconds}};
      if (options_.logprobs) result["logprobs"] = output.logprobs;
      print(json_line(result));
    }
    note(text(prompt.size(), " prompt tokens in ", duration(prompt_seconds), ", ", output.ids.size(), " tokens in ",
              duration(seconds), ", ", quantity(rate), " tokens/s"),
         invocation.common.quiet || invocation.common.json);
    return cut ? kInterrupted : 0;
  }

 private:
  static int prompts_given(const Invocation& invocation) {
    return invocation.has("prompt") + invocation.has("prompt_file") + invocation.has("ids");
  }
  static bool has_prompt(const Invocation& invocation) { return prompts_given(invocation) > 0; }

  void check_options(const Invocation& invocation) const {
    require_usage(prompts_given(invocation) <= 1,
                  "more than one prompt; give one of --prompt, --prompt-file and --ids");
    require_usage(has_prompt(invocation) || !state_in_.empty(),
                  "no prompt; give --prompt TEXT, --prompt-file F, --ids F.npy, or --state-in F to go on");
    require_range("--max-tokens", options_.max_tokens, 0);
    check_flags(options_.sampler);
    for (const std::string& stop : stops_) require_usage(!stop.empty(), "--stop is empty; expected a text");
    if (!ids_out_.empty()) require_can_write(ids_out_);
    if (!state_out_.empty()) require_can_write(state_out_);
  }

  std::vector<int64_t> prompt_ids(const Invocation& invocation, const ModelConfig& config,
                                  const Tokenizer* tokenizer) const {
    std::vector<int64_t> ids;
    if (invocation.has("ids")) {
      const Tensor given = read_ids(ids_, config.vocab_size);
      require(given.rank() == 1 || given.size(0) == 1, ids_, " has shape ", given.shape(),
              ", expected one sequence, (t)");
      ids.assign(given.data<int64_t>(), given.data<int64_t>() + given.count());
    } else if (has_prompt(invocation)) {
      ids = tokenizer->encode(invocation.has("prompt") ? prompt_ : read_text(prompt_file_));
    }
    // A model that was trained with an end-of-text token begins a new text after one.
    if (ids.empty() && state_in_.empty() && options_.end_of_text) ids.push_back(*options_.end_of_text);
    require(!ids.empty() || !state_in_.empty(),
            "the prompt is empty, and this model has no token to begin a text with; expected at least one ",
            tokenizer ? "byte of text" : "token id");
    return ids;
  }

  static void read(Generator& generator, const std::vector<int64_t>& prompt, bool quiet) {
    Progress progress(quiet);
    const auto start = Clock::now();
    for (size_t done = 0; done < prompt.size();) {
      stop_if_interrupted();
      const size_t count = std::min<size_t>(Generator::kChunk, prompt.size() - done);
      generator.read(std::span(prompt).subspan(done, count));
      done += count;
      if (seconds_since(start) > 1) progress.show(text("reading the prompt: ", done, "/", prompt.size(), " tokens"));
    }
    progress.clear();
  }

  GenerateOptions options_;
  std::string model_, prompt_, prompt_file_, ids_, state_in_, state_out_, ids_out_;
  std::vector<std::string> stops_;
};

}  // namespace

std::unique_ptr<Command> make_generate() { return std::make_unique<Generate>(); }

}  // namespace ssm::cli
