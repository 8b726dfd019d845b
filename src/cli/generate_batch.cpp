// `ssm generate --batch F.jsonl`: a JSON object a line in, one a line out in the same order. Up to --parallel sequences
// are written at once, and the next line enters when one of them has finished. Each line gives what the same prompt and
// options give alone.
#include <algorithm>
#include <deque>
#include <map>
#include <optional>

#include "cli/generate_parts.h"
#include "cli/line_reader.h"
#include "cli/terminal.h"
#include "engine/model_tokenizer.h"
#include "engine/state_file.h"
#include "formats/json.h"

namespace ssm::cli {
namespace {

// One line of the input.
struct Job {
  int64_t index = 0;  // among the objects, from 0
  Json id;            // theirs; null: none
  GenerateOptions options;
  std::vector<std::string> stops;
  std::vector<int64_t> prompt;
};

class JobReader {
 public:
  explicit JobReader(const Generation& run) : run_(run), lines_(run.settings.batch) {}

  bool ready() { return lines_.ready(); }

  // None at the end of the input. Throws Error that names the line.
  std::optional<Job> next() {
    for (auto line = lines_.next(); line; line = lines_.next()) {
      if (line->find_first_not_of(" \t") == std::string::npos) continue;
      const std::string where = text(lines_.name(), " line ", lines_.line());
      try {
        Job job = parse(*line, where);
        job.index = count_++;
        return job;
      } catch (const Error& problem) {
        const std::string what = problem.what();
        throw Error(what.starts_with(where) ? what : where + ": " + what);
      }
    }
    return std::nullopt;
  }

 private:
  // Options that the line does not name are those of the command line.
  Job parse(const std::string& line, const std::string& where) const {
    const GenerateSettings& settings = run_.settings;
    Json object = parse_json(line, where, 8);
    require(object.is_object(), where, " is no object; expected {\"prompt\": \"...\"} or {\"ids\": [...]}");
    Job job{.options = settings.options, .stops = settings.stops};
    if (object.contains("id")) job.id = object["id"];
    object.erase("id");
    if (object.contains("stop") && object["stop"].is_string()) object["stop"] = Json::array({object["stop"]});

    std::string prompt;
    std::vector<int64_t> ids;
    bool ignore_eos = settings.ignore_eos;
    auto seed = static_cast<int64_t>(job.options.seed);
    Fields fields = {{"prompt", &prompt, ""},
                     {"ids", &ids, ""},
                     {"max_tokens", &job.options.max_tokens, ""},
                     {"stop", &job.stops, ""},
                     {"seed", &seed, ""},
                     {"ignore_eos", &ignore_eos, ""},
                     {"logprobs", &job.options.logprobs, ""},
                     {"top_logprobs", &job.options.top_logprobs, ""}};
    for (Field& field : job.options.sampler.fields()) fields.push_back(std::move(field));
    read_json(fields, object.dump(), where);

    require(object.contains("prompt") != object.contains("ids"), where, " has ",
            object.contains("ids") ? "both prompt and ids" : "neither prompt nor ids", ", expected one of them");
    require(job.options.max_tokens >= 0, "max_tokens is ", job.options.max_tokens, ", expected 0 or more");
    require(0 <= job.options.top_logprobs && job.options.top_logprobs <= 1000, "top_logprobs is ",
            job.options.top_logprobs, ", expected 0 to 1000");
    for (const std::string& stop : job.stops) require(!stop.empty(), "stop is empty, expected a text");
    require(job.stops.empty() || run_.tokenizer, "stop needs text, and the model has no tokenizer");
    job.options.sampler.check();
    job.options.seed = static_cast<uint64_t>(seed);
    job.options.logprobs = job.options.logprobs || job.options.top_logprobs > 0;
    job.options.end_ids = ignore_eos ? std::vector<int64_t>{} : end_ids(run_.model.config(), run_.tokenizer);
    const bool begins = settings.state_in.empty();
    job.prompt = object.contains("ids") ? std::move(ids) : encode_prompt(run_.tokenizer, prompt, begins);
    if (job.prompt.empty() && begins) job.prompt = ids_to_begin_with(run_);
    const int64_t vocab = run_.model.config().vocab_size;
    for (const int64_t one : job.prompt)
      require(0 <= one && one < vocab, "token id ", one, " is outside the vocabulary, expected 0 to ", vocab - 1);
    return job;
  }

  const Generation& run_;
  LineReader lines_;
  int64_t count_ = 0;
};

class Jobs {
 public:
  explicit Jobs(const Generation& run)
      : run_(run),
        settings_(run.settings),
        reader_(run),
        pool_(run.model.lm().state_spec(), settings_.parallel, run.model.options().device),
        batch_(run.model, run.threads, pool_) {
    if (!settings_.state_in.empty()) beginning_ = read_state_file(settings_.state_in, run.model);
  }

  int run() {
    for (;;) {
      while (may_enter() && enter_next()) continue;
      if (!batch_.step() && !may_enter()) break;
      show_progress();
    }
    progress_.done();
    note(text(finished_, " sequences, ", prompt_tokens_, " prompt tokens, ", tokens_, " tokens in ",
              duration(seconds_since(start_)), ", ", quantity(static_cast<double>(tokens_) / seconds_since(start_)),
              " tokens/s"),
         settings_.quiet);
    if (problem_) throw Error(*problem_);
    return interrupted() ? kInterrupted : 0;
  }

 private:
  struct Running {
    Job job;
    Sequence sequence;
    WrittenText text;
    Clock::time_point start = Clock::now();
  };

  // Results that wait for an earlier one are kept, so the newest may not run far ahead of the oldest.
  bool may_enter() const {
    const int64_t ahead = entered_ - printed_;
    return more_ && !interrupted() && batch_.size() < settings_.parallel && ahead < 64 * settings_.parallel;
  }

  // False when there is nothing to enter now. A line that is wrong ends the reading; those before it are finished
  // first.
  bool enter_next() {
    std::optional<Job> job;
    try {
      if (batch_.size() > 0 && !reader_.ready()) return false;
      job = reader_.next();
    } catch (const Error& problem) {
      problem_ = problem.what();
    }
    more_ = job.has_value();
    if (!job) return false;
    const int64_t index = job->index;
    WrittenText written(run_.tokenizer, job->stops, job->options);
    Running& entering =
        *running_
             .emplace(index, std::make_unique<Running>(Running{.job = std::move(*job),
                                                               .sequence = Sequence(run_.model, pool_, pool_.acquire()),
                                                               .text = std::move(written)}))
             .first->second;
    ++entered_;
    if (beginning_) entering.sequence.restore(*beginning_);
    entering.sequence.read(entering.job.prompt);
    batch_.add(
        entering.sequence, entering.job.options,
        [this, &entering](const WrittenToken& token) {
          ++tokens_;
          entering.text.add(token);
          return !entering.text.stopped() && !interrupted();
        },
        [this, index](Finish how) { finish(index, how); });
    return true;
  }

  void finish(int64_t index, Finish how) {
    Running& done = *running_.at(index);
    done.text.finish();
    const auto prompt_tokens = static_cast<int64_t>(done.job.prompt.size());
    Json line = {{"index", index}};
    if (!done.job.id.is_null()) line["id"] = done.job.id;
    line.update(done.text.json(finish_reason(how, done.text), prompt_tokens, seconds_since(done.start)));
    waiting_[index] = json_line(line);
    prompt_tokens_ += prompt_tokens;
    ++finished_;
    pool_.release(done.sequence.slot());
    running_.erase(index);
    for (auto first = waiting_.begin(); first != waiting_.end() && first->first == printed_; first = waiting_.begin()) {
      progress_.clear();
      print(first->second);
      waiting_.erase(first);
      ++printed_;
    }
  }

  void show_progress() {
    const double seconds = seconds_since(start_);
    if (seconds < 1) return;
    progress_.show(text(finished_, " done, ", batch_.size(), " running, ",
                        quantity(static_cast<double>(tokens_) / seconds), " tokens/s"));
  }

  const Generation& run_;
  const GenerateSettings& settings_;
  JobReader reader_;
  StatePool pool_;
  Batch batch_;
  std::optional<Snapshot> beginning_;
  std::map<int64_t, std::unique_ptr<Running>> running_;
  std::map<int64_t, std::string> waiting_;  // results by index, until those before them are printed
  std::optional<std::string> problem_;
  bool more_ = true;
  int64_t entered_ = 0, printed_ = 0, finished_ = 0, tokens_ = 0, prompt_tokens_ = 0;
  Clock::time_point start_ = Clock::now();
  Progress progress_{settings_.quiet};
};

}  // namespace

int generate_batch(const Generation& run) { return Jobs(run).run(); }

}  // namespace ssm::cli
