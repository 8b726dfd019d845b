// `ssm evaluate`: how well a model predicts text or token ids (eval/perplexity.h says what is computed).
#include <chrono>
#include <cstdio>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "data/text.h"
#include "engine/model_tokenizer.h"
#include "eval/perplexity.h"
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
            {"data", &data_, "text files, read as one text, or one token file"},
            {"ids", &ids_, "token ids instead: integers (t) in a .npy file"},
            {"context", &options_.context, "windows of this many tokens, each from a zero state; 0: one unbroken text"},
            {"stride", &options_.stride, "tokens from window to window; 0: the context, windows side by side"}};
  }

  int run(const Invocation& invocation) override {
    require_usage(data_.empty() != ids_.empty(), "nothing to evaluate on; give one of --data FILE and --ids F.npy");
    require_range("--context", options_.context, 0);
    require_range("--stride", options_.stride, 0, options_.context);
    const bool quiet = invocation.common.quiet;
    const auto model = Model::open(model_, model_options(invocation.common));
    const auto tokenizer = model_tokenizer_if_any(model_, model->config());
    const Tokens tokens = ids_.empty() ? read_data(*model) : tokens_of_ids(*model);
    const std::vector<int64_t> bytes = bytes_of_ids(tokens, tokenizer.get());

    Threads threads(static_cast<int>(invocation.common.threads));
    const auto start = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    Progress progress(quiet);
    const Perplexity result = perplexity(*model, threads, tokens, options_, bytes, [&](const Perplexity& so_far) {
      stop_if_interrupted();
      const auto done = static_cast<double>(so_far.tokens), all = static_cast<double>(tokens.count() - 1);
      char line[160];
      std::snprintf(line, sizeof line, "%.0f%%, %.4f nats/token, %s tokens/s, ETA %s", 100 * done / all, so_far.nats(),
                    quantity(done / seconds()).c_str(), duration(seconds() * (all - done) / done).c_str());
      progress.show(line);
      return true;
    });
    progress.clear();
    report(result, seconds(), invocation.common.json);
    return 0;
  }

 private:
  Tokens read_data(const Model& model) const {
    if (is_token_file(data_[0])) {
      require(data_.size() == 1, "--data has ", data_.size(), " files of which ", data_[0],
              " is a token file; expected one token file, or text files");
      return Tokens::open(data_[0]);
    }
    const auto tokenizer = model_tokenizer(model_, model.config());
    const TextEncoder encoder{.encode = [&](std::string_view piece) { return tokenizer->encode(piece); },
                              .vocab = tokenizer->vocab(),
                              .name = tokenizer->name()};
    return read_tokens({data_.begin(), data_.end()}, encoder,
                       {.progress = [](int64_t, int64_t) { stop_if_interrupted(); }});
  }

  Tokens tokens_of_ids(const Model& model) const {
    const int64_t vocab = model.config().vocab_size;
    const Tensor ids = read_ids(ids_, vocab);
    require(ids.rank() == 1 || ids.size(0) == 1, ids_, " has shape ", ids.shape(), ", expected one sequence, (t)");
    return Tokens::from_ids(ids.span<int64_t>(), vocab, "");
  }

  // Only a tokenizer that made the tokens knows their bytes.
  static std::vector<int64_t> bytes_of_ids(const Tokens& tokens, const Tokenizer* tokenizer) {
    std::vector<int64_t> bytes;
    if (!tokenizer || (!tokens.tokenizer().empty() && tokens.tokenizer() != tokenizer->name())) return bytes;
    for (int64_t id = 0; id < tokenizer->vocab(); ++id)
      bytes.push_back(static_cast<int64_t>(tokenizer->bytes_of(id).size()));
    return bytes;
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

  std::string model_, ids_;
  std::vector<std::string> data_;
  PerplexityOptions options_;
};

}  // namespace

std::unique_ptr<Command> make_evaluate() { return std::make_unique<Evaluate>(); }

}  // namespace ssm::cli
