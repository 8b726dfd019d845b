// `ssm train`: from scratch, from a model's weights, or on from a checkpoint. Here the flags become a model and data;
// the steps are train/trainer.h's and the files train/run_directory.h's.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "core/memory.h"
#include "data/text.h"
#include "formats/npy.h"
#include "tokenizers/tokenizer.h"
#include "train/run_directory.h"
#include "train/trainer.h"
#include "train/training.h"

namespace ssm::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::string number(const char* pattern, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, pattern, value);
  return buffer;
}

// What a run trains on and what it is evaluated on.
struct Data {
  std::unique_ptr<Dataset> train, held_back;  // held_back: may be absent
  int64_t tokens = 0;                         // in all; 0: prescribed batches
};

// Where training stands, for the progress line: the speed of this process's steps alone.
class Pace {
 public:
  void add(const StepResult& step) {
    tokens_ += step.tokens;
    seconds_ += step.seconds;
    ++steps_;
  }
  std::string speed() const {
    return quantity(seconds_ > 0 ? static_cast<double>(tokens_) / seconds_ : 0) + " tokens/s";
  }
  // Evaluations and checkpoints count too.
  double left(int64_t steps) const {
    return seconds_since(begin_) / static_cast<double>(steps_) * static_cast<double>(steps);
  }
  double elapsed() const { return seconds_since(begin_); }

 private:
  Clock::time_point begin_ = Clock::now();
  int64_t tokens_ = 0, steps_ = 0;
  double seconds_ = 0;
};

class Train : public Command {
 public:
  std::string name() const override { return "train"; }
  std::string summary() const override { return "train a model: from scratch, from a model, or go on"; }
  std::string example() const override {
    return "ssm train --preset bytes-1m --data data/tinyshakespeare/input.txt --out runs/first --steps 300 "
           "--schedule cosine";
  }

  Fields fields() override {
    Fields all = config_.fields();
    all.push_back({"out", &out_, "directory of the run: checkpoints, log.jsonl"});
    all.push_back({"resume", &resume_, "go on with the run in this directory, with its own settings"});
    all.push_back({"report_memory", &report_memory_, "show at the end what a step keeps in memory, by operation"});
    return all;
  }

  int run(const Invocation& invocation) override {
    quiet_ = invocation.common.quiet;
    json_ = invocation.common.json;
    state_.seed = invocation.common.seed;
    state_.dtype = name_of(invocation.common.dtype_kind().value_or(DType::f32));
    if (!resume_.empty()) adopt_recorded_settings(invocation);
    settle_flags(invocation);
    if (resume_.empty()) check_new_run(out_);

    device_ = invocation.common.device_kind();
    const auto model = open_model(device_);
    const Data data = open_data(invocation, model->config());
    make_paths_absolute(state_.config);

    Threads threads(static_cast<int>(invocation.common.threads));
    Trainer trainer(*model, *data.train, threads, state_);
    if (!resume_.empty()) trainer.load_optimizer(checkpoint_);
    RunDirectory directory = resume_.empty() ? RunDirectory::start(out_) : RunDirectory::resume(out_);
    note(text(quantity(static_cast<double>(model->params().count())), " parameters, ",
              data.tokens > 0 ? quantity(static_cast<double>(data.tokens)) + " tokens of data" : "prescribed batches",
              ", ", quantity(static_cast<double>(config().batch * config().length * config().accumulate)),
              " tokens a step, ", threads.count(), " threads; run in ", out_),
         quiet_);
    return train_and_tell(*model, trainer, data, directory);
  }

 private:
  const TrainConfig& config() const { return state_.config; }

  // The settings of --resume: the recorded ones, and what the command line may change.
  void adopt_recorded_settings(const Invocation& invocation) {
    require_usage(!invocation.has("out") || absolute_path(out_) == absolute_path(resume_),
                  "--out with --resume: the run goes on in its own directory; leave --out away");
    out_ = resume_;
    checkpoint_ = newest_checkpoint(resume_);
    const TrainingState asked = state_;
    state_ = read_training_state(checkpoint_);
    const auto same = [&](const char* flag, const auto& given, const auto& recorded) {
      require(!invocation.has(flag) || given == recorded, "--", flag, " is ", given, ", the run in ", resume_, " has ",
              recorded, "; leave the flag out to go on");
    };
    same("seed", asked.seed, state_.seed);
    same("dtype", asked.dtype, state_.dtype);
    const ScheduleConfig before = config().rate;
    state_.config = resumed_config(config(), config_, invocation.given, resume_);
    const int64_t steps = config().rate.steps;
    require(steps >= state_.step, "--steps ", steps, ": the run in ", resume_, " has made ", state_.step, " already");
    if (steps != before.steps && before.schedule != "constant")
      note(text("the ", before.schedule, " schedule was made for ", before.steps, " steps; from here on it is that of ",
                steps),
           quiet_);
  }

  void settle_flags(const Invocation& invocation) {
    if (resume_.empty()) state_.config = config_;
    TrainConfig& now = state_.config;
    require_usage(!out_.empty(), "ssm train needs --out DIR, the directory of the run");
    const int sources = !now.preset.empty() + !now.config.empty() + !now.init.empty();
    require_usage(sources == 1, sources == 0 ? "ssm train needs a model" : "more than one model is given",
                  "; expected one of --preset NAME, --config FILE, --init MODEL, or --resume DIR");
    require_usage(now.data.empty() != now.batches.empty(), now.data.empty() ? "ssm train needs data" : "too much data",
                  "; expected one of --data FILE... and --batches FILE.npy");
    cli::check_flags(now);
    for (const std::vector<std::string>& files : {now.data, now.eval_data, std::vector<std::string>{now.batches}})
      for (const std::string& file : files)
        if (!file.empty()) MappedFile{file};  // missing, empty, a directory: better said before a model is made
    if (!now.batches.empty()) require_fixed_shape(invocation);
  }

  // Prescribed batches say what --batch and --length are, and how many steps there can be.
  void require_fixed_shape(const Invocation& invocation) {
    TrainConfig& now = state_.config;
    batches_ = read_npy(now.batches);
    require(batches_.rank() == 3, now.batches, " is ", batches_.shape(),
            ", expected integers (steps, batch, length + 1)");
    const auto adopt = [&](const char* flag, int64_t& value, int64_t found) {
      require(!invocation.has(flag) || value == found, "--", flag, " is ", value, ", ", now.batches, " ",
              batches_.shape(), " has ", found, "; leave the flag out");
      value = found;
    };
    adopt("batch", now.batch, batches_.size(1));
    adopt("length", now.length, batches_.size(2) - 1);
    const int64_t most = batches_.size(0) / now.accumulate;
    if (resume_.empty() && !invocation.has("steps")) now.rate.steps = std::max<int64_t>(1, most);
    require(now.rate.steps <= most, "--steps ", now.rate.steps, " with --accumulate ", now.accumulate, ": ",
            now.batches, " has batches for ", most, " steps");
    cli::check_flags(now);
  }

  std::unique_ptr<Model> open_model(const Device& device) {
    const ModelOptions options{.device = device, .dtype = *dtype_named(state_.dtype), .trainable = true};
    if (!resume_.empty()) return Model::open(checkpoint_, options);
    const TrainConfig& now = config();
    if (!now.init.empty()) return Model::open(now.init, options);
    const auto seed = static_cast<uint64_t>(state_.seed);
    if (!now.preset.empty()) return Model::create(ModelConfig::preset(now.preset), seed, options);
    return Model::create(ModelConfig::from_json(read_text(now.config), now.config), seed, options);
  }

  Data open_data(const Invocation& invocation, const ModelConfig& model) {
    TrainConfig& now = state_.config;
    const Path source = !resume_.empty() ? checkpoint_ : Path(now.init);
    if (now.tokenizer.empty())
      now.tokenizer = source.empty() ? (model.vocab_size == 256 ? "bytes" : "") : tokenizer_of(source, model);
    std::error_code ignored;
    if (std::filesystem::is_regular_file(now.tokenizer, ignored)) state_.tokenizer_json = read_text(now.tokenizer);

    Data result;
    TokenRange held_back;
    Tokens tokens = Tokens::from_ids({}, 1, "");
    if (!now.batches.empty()) {
      result.train = std::make_unique<FixedBatches>(batches_, model.vocab_size, now.batches);
    } else {
      tokens = read_data(now.data, model);
      result.tokens = tokens.count();
      require(resume_.empty() || tokens.count() == state_.data_tokens, "--data has ", tokens.count(),
              " tokens, the run in ", resume_, " began with ", state_.data_tokens,
              "; give the same data, or start a new run with --init ", resume_, " and another --out");
      const Split split = split_tokens(tokens.count(), now.eval_data.empty() ? now.validation : 0);
      held_back = split.validation;
      result.train = std::make_unique<Loader>(
          tokens, split.train,
          Loader::Options{.batch = now.batch, .length = now.length, .seed = static_cast<uint64_t>(state_.seed)});
    }
    state_.data_tokens = result.tokens;
    if (!now.eval_data.empty()) {
      tokens = read_data(now.eval_data, model);
      held_back = {0, tokens.count()};
    }
    const bool evaluates =
        now.eval_every > 0 && (!now.eval_data.empty() || (now.batches.empty() && now.validation > 0));
    require(evaluates || now.eval_data.empty() || !invocation.has("eval_data"),
            "--eval-data with --eval-every 0 would not be used; leave one of them out");
    if (evaluates) {
      if (now.eval_tokens > 0) held_back.end = std::min(held_back.end, held_back.begin + now.eval_tokens);
      result.held_back = std::make_unique<SequentialWindows>(tokens, held_back, now.batch, now.length);
    }
    return result;
  }

  // Text is tokenised, one token file is mapped, several are joined in memory.
  Tokens read_data(const std::vector<std::string>& files, const ModelConfig& model) const {
    const std::vector<Path> paths(files.begin(), files.end());
    const auto token_files = std::count_if(paths.begin(), paths.end(), is_token_file);
    require(token_files == 0 || token_files == static_cast<int64_t>(paths.size()),
            "--data: text and token files together; turn the text into token files with ssm tokenize first");
    Tokens tokens = token_files == 0 ? read_text_files(paths) : Tokens::open(paths[0]);
    if (token_files > 1) {
      TokenBuffer joined(tokens.vocab(), tokens.tokenizer(),
                         text(paths[0].string(), " and ", paths.size() - 1, " more"));
      std::vector<int64_t> piece;
      for (const Path& path : paths) {
        const Tokens next = Tokens::open(path);
        require(next.vocab() == tokens.vocab() && next.tokenizer() == tokens.tokenizer(), path.string(),
                " was made with the tokenizer ", next.tokenizer(), " (", next.vocab(), " ids), ", paths[0].string(),
                " with ", tokens.tokenizer(), " (", tokens.vocab(), "); expected one tokenizer for all files");
        constexpr int64_t kPiece = 1 << 16;
        for (int64_t at = 0; at < next.count(); at += kPiece) {
          piece.resize(static_cast<size_t>(std::min(kPiece, next.count() - at)));
          next.read(at, piece);
          joined.append(piece);
        }
      }
      tokens = joined.take();
    }
    require(tokens.vocab() <= model.vocab_size, tokens.origin(), " has ids of a vocabulary of ", tokens.vocab(), " (",
            tokens.tokenizer(), "), the model's is ", model.vocab_size, "; use the model's own tokenizer");
    return tokens;
  }

  Tokens read_text_files(const std::vector<Path>& paths) const {
    require(!config().tokenizer.empty(), paths[0].string(),
            " is text, and nothing says how to turn it into this model's ids; give --tokenizer, or token files");
    const auto tokenizer = open_tokenizer(config().tokenizer);
    Progress progress(quiet_);
    const Clock::time_point begin = Clock::now();
    const auto show = [&](int64_t done, int64_t total) {
      stop_if_interrupted();
      constexpr double kNoticed = 1;  // who waits less long needs no line
      if (seconds_since(begin) < kNoticed) return;
      progress.show("reading text · " + byte_count(static_cast<double>(done)) +
                    (total > 0 ? " of " + byte_count(static_cast<double>(total)) : ""));
    };
    const Tokens tokens = read_tokens(
        paths,
        {[&](std::string_view piece) { return tokenizer->encode(piece); }, tokenizer->vocab(), tokenizer->name()},
        {.progress = show});
    progress.clear();
    return tokens;
  }

  int train_and_tell(const Model& model, Trainer& trainer, const Data& data, RunDirectory& directory) {
    if (trainer.done()) {
      note(text("the run has made its ", config().rate.steps, " steps already; --steps N extends it"), quiet_);
      return 0;
    }
    reset_memory_peak(model.options().device);
    Pace pace;
    StepResult last;
    Training end;
    {
      Progress progress(quiet_);
      end = ssm::train(trainer, directory, data.held_back.get(), [&](const StepResult& result) {
        last = result;
        pace.add(last);
        if (json_) print(last.json() + "\n");
        progress.show(progress_line(last, pace));
        return interrupted() ? GoOn::no : GoOn::yes;
      });
    }
    if (const std::string why = trainer.why_not_recorded(); !why.empty())
      note("steps were not recorded as a graph, so their kernels were queued one by one: " + why, quiet_);
    if (end == Training::stopped) {
      note(text("interrupted after step ", last.step, " of ", config().rate.steps, "; go on with: ssm train --resume ",
                out_),
           quiet_);
      return kInterrupted;
    }
    if (json_) return 0;
    if (data.held_back && !last.eval_loss) last.eval_loss = trainer.evaluate(*data.held_back);
    print(summary(last, pace, directory));
    if (report_memory_) print(memory_report(model, trainer));
    return 0;
  }

  std::string progress_line(const StepResult& last, const Pace& pace) const {
    const int64_t steps = config().rate.steps;
    const std::string evaluated = last.eval_loss ? " · held back " + number("%.3f", *last.eval_loss) : "";
    return text("step ", last.step, "/", steps, " · loss ", number("%.3f", last.loss), evaluated, " · lr ",
                number("%.1e", last.lr), " · ", pace.speed(), " · ETA ", duration(pace.left(steps - last.step)));
  }

  std::string summary(const StepResult& last, const Pace& pace, const RunDirectory& directory) const {
    const std::string evaluated = last.eval_loss ? " · held-back loss " + number("%.4f", *last.eval_loss) : "";
    return text("step ", last.step, " · loss ", number("%.4f", last.loss), evaluated, " nats a token · ", pace.speed(),
                " · peak memory ", byte_count(static_cast<double>(memory_stats(device_).peak)), " · ",
                duration(pace.elapsed()), "\nmodel: ", directory.checkpoint().string(), "\n");
  }

  std::string memory_report(const Model& model, const Trainer& trainer) const {
    std::string table = "kept for the backward of one batch:\n";
    int64_t total = 0;
    const auto row = [&](const std::string& left, const std::string& nodes, int64_t bytes) {
      char line[128];
      std::snprintf(line, sizeof line, "  %-28s %-10s %12s\n", left.c_str(), nodes.c_str(),
                    byte_count(static_cast<double>(bytes)).c_str());
      table += line;
    };
    for (const SavedBytes& op : trainer.saved_bytes()) {
      row(op.op, text("x ", op.nodes), op.bytes);
      total += op.bytes;
    }
    row("together", "", total);
    table += "throughout:\n";
    row("parameters", "", model.params().bytes());
    row("gradients", "", model.params().bytes());
    row("moments", "", 2 * model.params().bytes());
    table += "at most, with what operations need while they run:\n";
    row("peak", "", memory_stats(device_).peak);
    return table;
  }

  TrainConfig config_;  // as the command line says
  std::string out_, resume_;
  bool report_memory_ = false;

  TrainingState state_;  // config: what the run has
  Device device_;
  Path checkpoint_;  // of --resume
  Tensor batches_;   // of --batches
  bool quiet_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Command> make_train() { return std::make_unique<Train>(); }

}  // namespace ssm::cli
