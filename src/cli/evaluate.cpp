// `ssm evaluate`: how well a model predicts text or token ids (eval/perplexity.h says what is computed).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "engine/model_tokenizer.h"
#include "eval/perplexity.h"
#include "eval/token_source.h"
#include "formats/npy.h"

namespace ssm::cli {
namespace {

class Evaluate : public Command {
 public:
  std::string name() const override { return "evaluate"; }
  std::string summary() const override { return "loss, perplexity and bits a byte on text"; }
  std::string example() const override { return "ssm evaluate --model runs/shakespeare --data held-back.txt"; }

  Fields fields() override {
    return {{.name = "model", .target = &model_, .help = "a model's directory or weights file", .required = true},
            {"tokenizer", &tokenizer_, "bytes or a tokenizer's file, for a model that has none"},
            {"data", &data_, "text files, read as one text (- is standard input), or one token file"},
            {"ids", &ids_, "token ids instead: integers (t) in a .npy file"},
            {"context", &options_.context, "windows of this many tokens, each from a zero state; 0: one unbroken text"},
            {"stride", &options_.stride, "tokens from window to window; 0: the context, windows side by side"}};
  }

  int run(const Invocation& invocation) override {
    require_usage(data_.empty() != ids_.empty(), "nothing to evaluate on; give one of --data FILE and --ids F.npy");
    require_range("--context", options_.context, 0);
    require_usage(options_.context != 1, "--context is 1, expected at least 2: a token is predicted from others");
    require_range("--stride", options_.stride, 0, options_.context);
    const auto model = Model::open(model_, model_options(invocation.common));
    const auto tokenizer = model_tokenizer_if_any(model_, model->config(), tokenizer_);
    const std::unique_ptr<TokenSource> source = open_source(*model, tokenizer.get());

    Threads threads(static_cast<int>(invocation.common.threads));
    const auto start = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    Progress progress(invocation.common.quiet);
    const Perplexity result =
        perplexity(*model, threads,
                   {.next = [&](std::span<int64_t> out) { return source->next(out); }, .origin = source->origin()},
                   options_, bytes_of_ids(*source, tokenizer.get(), model->config()), [&](const Perplexity& so_far) {
                     progress.show(progress_line(so_far, source->share(), seconds()));
                     return !interrupted();
                   });
    progress.done();
    require(result.tokens > 0, source->origin(), ": no token was scored");
    report(result, seconds(), invocation.common.json);
    return interrupted() ? kInterrupted : 0;
  }

 private:
  std::unique_ptr<TokenSource> open_source(const Model& model, const Tokenizer* tokenizer) const {
    if (!ids_.empty()) {
      const int64_t vocab = model.config().vocab_size;
      const Tensor ids = read_ids(ids_, vocab);
      require(ids.rank() == 1 || ids.size(0) == 1, ids_, " has shape ", ids.shape(), ", expected one sequence, (t)");
      return std::make_unique<KnownTokens>(Tokens::from_ids(ids.span<int64_t>(), vocab, ""));
    }
    if (is_token_file(data_[0])) {
      require(data_.size() == 1, "--data has ", data_.size(), " files of which ", data_[0],
              " is a token file; expected one token file, or text files");
      return std::make_unique<KnownTokens>(Tokens::open(data_[0]));
    }
    if (!tokenizer) model_tokenizer(model_, model.config(), tokenizer_);  // throws with the reason
    return std::make_unique<TextTokens>(data_, *tokenizer);
  }

  static std::string progress_line(const Perplexity& so_far, std::optional<double> share, double seconds) {
    char nats[32];
    std::snprintf(nats, sizeof nats, "%.4f", so_far.nats());
    const auto tokens = static_cast<double>(so_far.tokens);
    std::string line =
        text(quantity(tokens), " tokens, ", nats, " nats/token, ", quantity(tokens / seconds), " tokens/s");
    if (share && *share > 0)
      line = text(static_cast<int>(100 * *share), "%, ", line, ", ETA ", duration(seconds / *share - seconds));
    return line;
  }

  static void report(const Perplexity& result, double seconds, bool json) {
    if (json) {
      const double nats = result.nats();
      print(json_line({{"tokens", result.tokens},
                       {"loss", nats},
                       {"perplexity", result.perplexity()},
                       {"bits_per_byte", result.bytes > 0 ? Json(result.bits_per_byte()) : Json()},
                       {"bytes", result.bytes > 0 ? Json(result.bytes) : Json()},
                       {"seconds", seconds},
                       {"tokens_per_second", static_cast<double>(result.tokens) / seconds}}));
      return;
    }
    char lines[160];
    std::snprintf(lines, sizeof lines, "tokens      %lld\nnats/token  %.6f\nperplexity  %.6g\n",
                  static_cast<long long>(result.tokens), result.nats(), result.perplexity());
    print(lines);
    if (result.bytes == 0) return;
    std::snprintf(lines, sizeof lines, "bits/byte   %.6f\n", result.bits_per_byte());
    print(lines);
  }

  std::string model_, tokenizer_, ids_;
  std::vector<std::string> data_;
  PerplexityOptions options_;
};

}  // namespace

std::unique_ptr<Command> make_evaluate() { return std::make_unique<Evaluate>(); }

}  // namespace ssm::cli
