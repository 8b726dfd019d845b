// `ssm logits`: the logits after every token, for scripts and comparisons. All rows of the head are written, those that
// pad the vocabulary too, as the published implementation returns them. Rows go to the file as they are made: neither
// tokens x vocabulary nor a long sequence's activations are ever held.
#include <algorithm>
#include <optional>

#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/npy_rows.h"
#include "cli/terminal.h"
#include "formats/npy.h"

namespace ssm::cli {
namespace {

constexpr int64_t kDefaultChunk = 2048;   // tokens; some 100 MB of activations in the largest published model
constexpr int64_t kHeadFloats = 4 << 20;  // logits held at once: 16 MB

class Logits : public Command {
 public:
  std::string name() const override { return "logits"; }
  std::string summary() const override { return "logits for every position, for scripts and comparisons"; }
  std::string example() const override { return "ssm logits --model runs/shakespeare --ids ids.npy --out logits.npy"; }

  Fields fields() override {
    return {
        {.name = "model", .target = &model_, .help = "a model's directory or weights file", .required = true},
        {.name = "ids", .target = &ids_, .help = "token ids: integers (t) or (s, t) in a .npy file", .required = true},
        {.name = "out",
         .target = &out_,
         .help = "f32 (t, vocab) or (s, t, vocab) as .npy; vocab with its padding rows",
         .required = true},
        {"chunk", &chunk_, "feed this many tokens at a time, carrying the state"}};
  }

  int run(const Invocation& invocation) override {
    require_range("--chunk", chunk_, 1);
    require_can_write(out_);
    const auto model = Model::open(model_, model_options(invocation.common));
    const Tensor ids = read_ids(ids_, model->config().vocab_size);  // (t) or (s, t)
    require(ids.count() > 0, ids_, " has shape ", ids.shape(), ", expected at least one token");
    const int64_t length = ids.size(-1), count = ids.count() / length, vocab = model->config().padded_vocab();
    NpyRows rows(out_, ids.rank() == 1 ? Shape{length, vocab} : Shape{count, length, vocab});

    Threads threads(static_cast<int>(invocation.common.threads));
    const Ctx ctx{.device = model->options().device, .threads = &threads};
    StatePool pool(model->lm().state_spec(), 1, model->options().device);
    Progress progress(invocation.common.quiet);
    const Tensor flat = ids.reshape({count * length});
    for (int64_t s = 0; s < count; ++s) {
      pool.zero(0);
      for (int64_t begin = 0; begin < length; begin += chunk_) {
        stop_if_interrupted();
        const int64_t taken = std::min(chunk_, length - begin), from = s * length + begin;
        const Var hidden = model->lm().hidden(ctx, flat.rows(from, from + taken), Seqs::dense(1, taken), pool.state(),
                                              LanguageModel::Rounding::none);  // (taken, d)
        write_logits(ctx, *model, hidden.value, rows);
        progress.show(text(from + taken, "/", count * length, " tokens"));
      }
    }
    rows.commit();
    progress.clear();
    if (invocation.common.json)
      print(json_line({{"out", out_}, {"sequences", count}, {"tokens", length}, {"vocab", vocab}}));
    return 0;
  }

 private:
  static void write_logits(const Ctx& ctx, const Model& model, const Tensor& hidden, NpyRows& rows) {
    const int64_t block = std::max<int64_t>(1, kHeadFloats / model.config().padded_vocab());
    for (int64_t begin = 0; begin < hidden.size(0); begin += block) {
      const int64_t end = std::min(begin + block, hidden.size(0));
      rows.write(model.lm().logits(ctx, Var{hidden.rows(begin, end), {}}).value.on(Device::cpu()).to(DType::f32));
    }
  }

  std::string model_, ids_, out_;
  int64_t chunk_ = kDefaultChunk;
};

}  // namespace

std::unique_ptr<Command> make_logits() { return std::make_unique<Logits>(); }

}  // namespace ssm::cli
