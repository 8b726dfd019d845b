// One continuation of a prompt, streamed as it is written; or several from one reading of it, each printed when it and
// those before it are done.
#include "cli/generate_parts.h"
#include "cli/terminal.h"
#include "engine/state_file.h"
#include "formats/npy.h"

namespace ssm::cli {
namespace {

class Samples {
 public:
  explicit Samples(const Generation& run)
      : run_(run),
        settings_(run.settings),
        // One slot more for the prompt's state, which all are copied from.
        pool_(run.model.lm().state_spec(), alone() ? 1 : std::min(settings_.samples, settings_.parallel) + 1,
              run.model.options().device),
        batch_(run.model, run.threads, pool_),
        prompt_(run.model, pool_, pool_.acquire()) {}

  int run() {
    if (!settings_.state_in.empty()) prompt_.restore(read_state_file(settings_.state_in, run_.model));
    const PromptReading reading = read_prompt(run_, batch_, prompt_);
    if (alone()) enter(prompt_);
    for (int64_t i = 1; !alone() && i < pool_.slots(); ++i) enter_copy(pool_.acquire());
    const auto start = Clock::now();
    while (batch_.step()) show_progress(start);
    progress_.done();
    const double seconds = seconds_since(start);
    if (!settings_.ids_out.empty()) write_npy(settings_.ids_out, Tensor::of(samples_[0]->text.ids()));
    if (!settings_.state_out.empty()) {
      Sequence* const last = &prompt_;
      batch_.feed(std::span(&last, 1));
      write_state_file(settings_.state_out, run_.model, prompt_.snapshot());
    }
    if (settings_.json) print(json_line(report(reading, seconds)));
    const double rate = seconds > 0 ? static_cast<double>(tokens_) / seconds : 0;
    note(text(reading.tokens, " prompt tokens in ", duration(reading.seconds), ", ", tokens_, " tokens in ",
              duration(seconds), ", ", quantity(rate), " tokens/s"),
         settings_.quiet || settings_.json);
    return cut_ ? kInterrupted : 0;
  }

 private:
  struct Sample {
    std::unique_ptr<Sequence> copy;  // none for the one that needs no copy
    WrittenText text;
    std::string printed_later;
    std::string_view reason;  // once it is done
  };

  bool alone() const { return settings_.samples == 1; }
  bool streams() const { return alone() && !settings_.json; }

  void enter_copy(StatePool::Slot slot) {
    auto copy = std::make_unique<Sequence>(run_.model, pool_, slot);
    copy->copy(prompt_);
    enter(*copy);
    samples_.back()->copy = std::move(copy);
  }

  void enter(Sequence& sequence) {
    const size_t i = samples_.size();
    samples_.push_back(
        std::make_unique<Sample>(Sample{.text = WrittenText(run_.tokenizer, settings_.stops, settings_.options)}));
    GenerateOptions options = settings_.options;
    options.sample = static_cast<int64_t>(i);
    batch_.add(
        sequence, options, [this, i](const WrittenToken& token) { return take(*samples_[i], token); },
        [this, i](Finish how) { finish(*samples_[i], how); });
  }

  bool take(Sample& sample, const WrittenToken& token) {
    ++tokens_;
    const std::string decided = sample.text.add(token);
    const bool lines = settings_.options.logprobs;
    const std::string separator = sample.text.ids().size() > 1 ? " " : "";
    out(sample, lines            ? sample.text.logprob_line(token)
                : run_.tokenizer ? decided
                                 : separator + std::to_string(token.id));
    return !sample.text.stopped() && !interrupted();
  }

  void finish(Sample& sample, Finish how) {
    const std::string rest = sample.text.finish();
    sample.reason = finish_reason(how, sample.text);
    cut_ = cut_ || sample.reason == "interrupted";
    if (!settings_.options.logprobs) {
      out(sample, rest);
      // The shell's prompt comes on a line of its own; elsewhere the text stays as written.
      const bool open_line = run_.tokenizer ? !sample.text.text().empty() && sample.text.text().back() != '\n'
                                            : !sample.text.ids().empty();
      if (open_line && (!run_.tokenizer || !alone() || stdout_is_terminal())) out(sample, "\n");
    }
    print_done();
    if (!sample.copy) return;
    const StatePool::Slot slot = sample.copy->slot();
    sample.copy.reset();
    if (!interrupted() && static_cast<int64_t>(samples_.size()) < settings_.samples) enter_copy(slot);
  }

  void out(Sample& sample, const std::string& text) {
    if (streams())
      print(text);
    else if (!settings_.json)
      sample.printed_later += text;
  }

  void print_done() {
    for (; !alone() && !settings_.json && next_ < samples_.size() && !samples_[next_]->reason.empty(); ++next_) {
      progress_.clear();
      print(text("=== sample ", next_ + 1, " of ", settings_.samples, " ===\n") +
            std::exchange(samples_[next_]->printed_later, {}));
    }
  }

  void show_progress(Clock::time_point start) {
    if (alone() || seconds_since(start) < 1) return;
    progress_.show(text(static_cast<int64_t>(samples_.size()) - batch_.size(), "/", settings_.samples, " samples, ",
                        quantity(static_cast<double>(tokens_) / seconds_since(start)), " tokens/s"));
  }

  // The fields of a run of one are those of the first sample; the sums are over all.
  Json report(const PromptReading& reading, double seconds) const {
    Json result = samples_[0]->text.json(samples_[0]->reason, reading.tokens, seconds);
    result["prompt_seconds"] = reading.seconds;
    if (alone()) return result;
    result["tokens"] = tokens_;
    result["tokens_per_second"] = seconds > 0 ? static_cast<double>(tokens_) / seconds : 0;
    result["samples"] = Json::array();
    for (const auto& sample : samples_) {
      Json one = sample->text.json(sample->reason, reading.tokens, seconds);
      for (const char* shared : {"prompt_tokens", "seconds", "tokens_per_second"}) one.erase(shared);
      result["samples"].push_back(std::move(one));
    }
    return result;
  }

  const Generation& run_;
  const GenerateSettings& settings_;
  StatePool pool_;
  Batch batch_;
  Sequence prompt_;
  std::vector<std::unique_ptr<Sample>> samples_;
  size_t next_ = 0;  // to be printed
  int64_t tokens_ = 0;
  bool cut_ = false;
  Progress progress_{settings_.quiet};
};

}  // namespace

int generate_samples(const Generation& run) { return Samples(run).run(); }

}  // namespace ssm::cli
