// `ssm evaluate`: how well a model predicts text or token ids (eval/perplexity.h says what is computed).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

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
    const std::unique_ptr<Source> source = open_source(*model, tokenizer.get());

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
  // Where the ids come from.
  class Source {
   public:
    virtual ~Source() = default;
    virtual size_t next(std::span<int64_t> out) = 0;
    virtual std::optional<double> share() const = 0;  // of all, how much has come; none: nobody knows
    virtual std::string origin() const = 0;
    virtual std::string tokenizer() const = 0;  // the name of the one that made the ids; "": not known
  };

  class TokenSource : public Source {
   public:
    explicit TokenSource(Tokens tokens) : tokens_(std::move(tokens)), stream_(stream_of(tokens_)) {}
    size_t next(std::span<int64_t> out) override {
      const size_t count = stream_.next(out);
      given_ += static_cast<double>(count);
      return count;
    }
    std::optional<double> share() const override { return given_ / static_cast<double>(tokens_.count()); }
    std::string origin() const override { return tokens_.origin(); }
    std::string tokenizer() const override { return tokens_.tokenizer(); }

   private:
    Tokens tokens_;
    TokenStream stream_;
    double given_ = 0;
  };

  // Text files one after the other, tokenised a piece at a time.
  class TextSource : public Source {
   public:
    TextSource(const std::vector<std::string>& files, const Tokenizer& tokenizer) : files_(files), encoder_(tokenizer) {
      for (const std::string& file : files_) {  // before the run, not in the middle of it
        const TextPieces probe(file);
        total_ += static_cast<double>(probe.total());
        total_known_ = total_known_ && probe.total() > 0;
      }
    }

    size_t next(std::span<int64_t> out) override {
      size_t count = 0;
      while (count < out.size() && (taken_ < ids_.size() || refill())) {
        const size_t more = std::min(out.size() - count, ids_.size() - taken_);
        std::copy_n(ids_.begin() + static_cast<std::ptrdiff_t>(taken_), more, out.data() + count);
        taken_ += more;
        count += more;
      }
      return count;
    }
    std::optional<double> share() const override {
      if (!total_known_) return std::nullopt;
      const double of_piece = ids_.empty() ? 1 : static_cast<double>(taken_) / static_cast<double>(ids_.size());
      return (before_ + piece_ * of_piece) / total_;
    }
    std::string origin() const override {
      return files_[0] + (files_.size() > 1 ? text(" and ", files_.size() - 1, " more") : "");
    }
    std::string tokenizer() const override { return encoder_.name(); }

   private:
    // The ids of the next piece; false at the end.
    bool refill() {
      ids_.clear();
      taken_ = 0;
      while (ids_.empty()) {
        if (!file_) {
          if (at_ == files_.size()) return false;
          file_ = std::make_unique<TextPieces>(files_[at_]);
        }
        const std::string_view piece = file_->next();
        before_ += std::exchange(piece_, static_cast<double>(piece.size()));
        if (piece.empty()) {
          require(file_->bytes() > 0, files_[at_], " is empty; expected text");
          file_.reset();
          ++at_;
        } else {
          ids_ = encoder_.encode(piece);
        }
      }
      return true;
    }

    const std::vector<std::string>& files_;
    const Tokenizer& encoder_;
    std::unique_ptr<TextPieces> file_;
    size_t at_ = 0;  // of files_
    std::vector<int64_t> ids_;
    size_t taken_ = 0;
    double before_ = 0, piece_ = 0, total_ = 0;  // bytes
    bool total_known_ = true;
  };

  std::unique_ptr<Source> open_source(const Model& model, const Tokenizer* tokenizer) const {
    if (!ids_.empty()) {
      const int64_t vocab = model.config().vocab_size;
      const Tensor ids = read_ids(ids_, vocab);
      require(ids.rank() == 1 || ids.size(0) == 1, ids_, " has shape ", ids.shape(), ", expected one sequence, (t)");
      return std::make_unique<TokenSource>(Tokens::from_ids(ids.span<int64_t>(), vocab, ""));
    }
    if (is_token_file(data_[0])) {
      require(data_.size() == 1, "--data has ", data_.size(), " files of which ", data_[0],
              " is a token file; expected one token file, or text files");
      return std::make_unique<TokenSource>(Tokens::open(data_[0]));
    }
    if (!tokenizer) model_tokenizer(model_, model.config(), tokenizer_);  // throws with the reason
    return std::make_unique<TextSource>(data_, *tokenizer);
  }

  // Only a tokenizer that made the tokens knows their bytes; ids past its vocabulary stand for none.
  static std::vector<int64_t> bytes_of_ids(const Source& source, const Tokenizer* tokenizer,
                                           const ModelConfig& config) {
    if (!tokenizer || (!source.tokenizer().empty() && source.tokenizer() != tokenizer->name())) return {};
    std::vector<int64_t> bytes(static_cast<size_t>(config.vocab_size));
    for (int64_t id = 0; id < std::min(tokenizer->vocab(), config.vocab_size); ++id)
      bytes[static_cast<size_t>(id)] = static_cast<int64_t>(tokenizer->bytes_of(id).size());
    return bytes;
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
