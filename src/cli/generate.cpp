// `ssm generate`: continue a prompt (generate_samples.cpp), many of them (generate_batch.cpp), or talk
// (generate_interactive.cpp). Here are its options and what must hold between them.
#include "cli/generate_parts.h"
#include "cli/model_flags.h"
#include "engine/model_tokenizer.h"

namespace ssm::cli {
namespace {

class Generate : public Command {
 public:
  std::string name() const override { return "generate"; }
  std::string summary() const override { return "continue a prompt, streaming"; }
  std::string example() const override {
    return "ssm generate --model runs/shakespeare --prompt 'ROMEO:' --max-tokens 400 --temperature 0.8";
  }

  Fields fields() override {
    GenerateSettings& s = settings_;
    Fields all = {
        {.name = "model", .target = &s.model, .help = "a model's directory or weights file", .required = true},
        {"tokenizer", &s.tokenizer, "bytes or a tokenizer's file, for a model that has none"},
        {"prompt", &s.prompt, "text to continue"},
        {"prompt_file", &s.prompt_file, "file with it, every byte as it is; - reads standard input"},
        {"ids", &s.ids, "token ids to continue: integers (t) in a .npy file"},
        {"max_tokens", &s.options.max_tokens, "tokens to write at most"}};
    for (Field& field : s.options.sampler.fields()) all.push_back(std::move(field));
    const Fields rest = {
        {"stop", &s.stops, "end before this text; several may be given"},
        {"ignore_eos", &s.ignore_eos, "go on after tokens that end a text"},
        {"logprobs", &s.options.logprobs, "a line a token: id, log probability, text; with --json a list"},
        {"top_logprobs", &s.options.top_logprobs, "the same with the N likeliest alternatives to each"},
        {"samples", &s.samples, "continuations, written together from one reading of the prompt"},
        {"batch", &s.batch,
         "JSON lines of {\"prompt\": ...} or {\"ids\": [...]}, with \"id\" and options of their own; - reads standard "
         "input. A JSON line each comes out, in their order"},
        {"parallel", &s.parallel, "sequences of --batch or --samples that are written at once"},
        {"state_in", &s.state_in, "go on where the run that wrote this file ended"},
        {"state_out", &s.state_out, "keep the state of the sequence for --state-in"},
        {"ids_out", &s.ids_out, "written token ids: i64 (t) as .npy"},
        {"interactive", &s.interactive,
         "a line is read, an answer written, the state carried on: nothing is read twice. /help lists its commands"},
        {"prefix", &s.prefix, "with --interactive: text before each line"},
        {"suffix", &s.suffix, "with --interactive: text after each line"},
        {"undo", &s.undo, "with --interactive: turns that can be taken back; each keeps a copy of the state"}};
    all.insert(all.end(), rest.begin(), rest.end());
    return all;
  }

  int run(const Invocation& invocation) override {
    GenerateSettings& s = settings_;
    check_options(invocation);
    s.json = invocation.common.json;
    s.quiet = invocation.common.quiet;
    s.has_ids = invocation.has("ids");
    s.has_prompt = invocation.has("prompt") || invocation.has("prompt_file");
    s.options.seed = static_cast<uint64_t>(invocation.common.seed);
    s.options.logprobs = s.options.logprobs || s.options.top_logprobs > 0;

    const auto model = Model::open(s.model, model_options(invocation.common));
    const auto tokenizer = open_text_side(*model);
    require(tokenizer || s.stops.empty(), "--stop needs text, and ", s.model,
            " has no tokenizer; give --tokenizer PATH");
    if (!s.ignore_eos) s.options.end_ids = end_ids(model->config(), tokenizer.get());
    Threads threads(static_cast<int>(invocation.common.threads));
    const Generation generation{.settings = s, .model = *model, .tokenizer = tokenizer.get(), .threads = threads};
    if (!s.batch.empty()) return generate_batch(generation);
    return s.interactive ? generate_interactive(generation) : generate_samples(generation);
  }

 private:
  void check_options(const Invocation& invocation) const {
    const GenerateSettings& s = settings_;
    const auto has = [&](std::string_view field) { return invocation.has(field); };
    const int prompts = has("prompt") + has("prompt_file") + has("ids");
    require_usage(prompts <= 1, "more than one prompt; give one of --prompt, --prompt-file and --ids");
    require_usage(prompts > 0 || !s.state_in.empty() || !s.batch.empty() || s.interactive,
                  "no prompt; give --prompt TEXT, --prompt-file F, --ids F.npy, or --state-in F to go on");
    require_range("--max-tokens", s.options.max_tokens, 0);
    require_range("--top-logprobs", s.options.top_logprobs, 0, 1000);
    require_range("--samples", s.samples, 1, 1'000'000);
    require_range("--parallel", s.parallel, 1, 4096);
    require_range("--undo", s.undo, 0);
    check_flags(s.options.sampler);
    for (const std::string& stop : s.stops) require_usage(!stop.empty(), "--stop is empty; expected a text");
    const auto exclude = [&](bool given, const char* flag, std::initializer_list<const char*> others) {
      for (const char* other : others)
        require_usage(!given || !has(other), flag, " and ", flag_of(other), " do not go together");
    };
    exclude(!s.batch.empty(), "--batch",
            {"prompt", "prompt_file", "ids", "samples", "state_out", "ids_out", "interactive"});
    exclude(s.interactive, "--interactive", {"samples", "ids_out", "logprobs", "top_logprobs", "parallel"});
    exclude(s.samples > 1, "--samples", {"state_out", "ids_out"});
    for (const char* flag : {"prefix", "suffix", "undo"})
      require_usage(s.interactive || !has(flag), flag_of(flag), " is for --interactive");
    require_usage(!s.interactive || s.prompt_file != "-", "--prompt-file - and --interactive both read standard input");
    if (!s.ids_out.empty()) require_can_write(s.ids_out);
    if (!s.state_out.empty()) require_can_write(s.state_out);
  }

  // Null where ids are enough.
  std::unique_ptr<Tokenizer> open_text_side(const Model& model) const {
    const GenerateSettings& s = settings_;
    return s.has_prompt || s.interactive ? model_tokenizer(s.model, model.config(), s.tokenizer)
                                         : model_tokenizer_if_any(s.model, model.config(), s.tokenizer);
  }

  GenerateSettings settings_;
};

}  // namespace

std::unique_ptr<Command> make_generate() { return std::make_unique<Generate>(); }

}  // namespace ssm::cli
