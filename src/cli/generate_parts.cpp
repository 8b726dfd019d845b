#include "cli/generate_parts.h"

#include <algorithm>
#include <cstdio>

#include "cli/terminal.h"
#include "engine/model_tokenizer.h"
#include "formats/npy.h"

namespace ssm::cli {
namespace {

// The prompt of the settings in pieces of ids.
class PromptPieces {
 public:
  PromptPieces(const Generation& run, bool begins) : run_(run), begins_(begins) {
    const GenerateSettings& settings = run.settings;
    if (settings.has_ids) {
      const Tensor given = read_ids(settings.ids, run.model.config().vocab_size);
      require(given.rank() == 1 || given.size(0) == 1, settings.ids, " has shape ", given.shape(),
              ", expected one sequence, (t)");
      given_ids_ = given;
    } else if (!settings.prompt_file.empty()) {
      file_ = std::make_unique<TextPieces>(settings.prompt_file);
    } else {
      text_ = settings.prompt;
    }
  }

  // Empty at the end.
  std::vector<int64_t> next() {
    if (given_ids_) {
      const std::vector<int64_t> ids(given_ids_.data<int64_t>(), given_ids_.data<int64_t>() + given_ids_.count());
      given_ids_ = {};
      return ids;
    }
    std::vector<int64_t> ids;
    do {  // a piece of text may have no ids
      const std::string_view piece = file_ ? file_->next() : std::exchange(text_, {});
      if (piece.empty()) break;
      ids = encode_prompt(run_.tokenizer, piece, begins_);
      begins_ = false;
    } while (ids.empty());
    return ids;
  }

  // Of the whole prompt, how much lies in the pieces so far; 1 when nobody knows.
  double given_out() const {
    return file_ && file_->total() > 0 ? static_cast<double>(file_->bytes()) / static_cast<double>(file_->total()) : 1;
  }
  bool knows_total() const { return !file_ || file_->total() > 0; }

 private:
  const Generation& run_;
  bool begins_;
  Tensor given_ids_;
  std::unique_ptr<TextPieces> file_;
  std::string_view text_;
};

}  // namespace

std::vector<int64_t> encode_prompt(const Tokenizer* tokenizer, std::string_view text, bool begins) {
  require(tokenizer, "this model has no tokenizer; give --tokenizer PATH, or ids instead of text");
  return begins ? tokenizer->encode_with_specials(text) : tokenizer->encode(text);
}

std::string bytes_of_id(const Tokenizer* tokenizer, int64_t id) {
  if (!tokenizer || !tokenizer->knows(id) || tokenizer->is_special(id)) return {};
  return tokenizer->bytes_of(id);
}

std::vector<int64_t> ids_to_begin_with(const Generation& run) {
  // A model that was trained with an end-of-text token begins a new text after one.
  const std::vector<int64_t> ends = end_ids(run.model.config(), run.tokenizer);
  require(!ends.empty(),
          "the prompt is empty, and this model has no token to begin a text with; expected at least one ",
          run.tokenizer ? "byte of text" : "token id");
  return {ends.front()};
}

PromptReading read_prompt(const Generation& run, Batch& batch, Sequence& sequence) {
  const int64_t before = sequence.tokens();
  PromptPieces prompt(run, before == 0);
  Progress progress(run.settings.quiet);
  Sequence* const alone = &sequence;
  std::vector<int64_t> ids;  // not handed on yet: pieces end where they would if the text came in one
  double known_before = 0;
  const auto start = Clock::now();
  const auto feed = [&](size_t count) {
    sequence.read(std::span(ids).first(count));
    ids.erase(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
    batch.feed(std::span(&alone, 1), [&] {
      const double seconds = seconds_since(start);
      const auto done = static_cast<double>(sequence.tokens() - before - sequence.unread());
      if (interrupted()) return false;
      if (seconds < 1 || done == 0) return true;
      std::string line =
          text("reading the prompt: ", quantity(done), " tokens, ", quantity(done / seconds), " tokens/s");
      if (prompt.knows_total()) {
        const double of_piece = 1 - static_cast<double>(sequence.unread()) / static_cast<double>(count);
        const double share = known_before + (prompt.given_out() - known_before) * of_piece;
        line = text(static_cast<int>(100 * share), "%, ", line, ", ETA ", duration(seconds / share - seconds));
      }
      progress.show(line);
      return true;
    });
    stop_if_interrupted();
  };
  constexpr auto kPiece = static_cast<size_t>(Sequence::kPiece);
  for (std::vector<int64_t> piece = prompt.next(); !piece.empty(); piece = prompt.next()) {
    ids.insert(ids.end(), piece.begin(), piece.end());
    stop_if_interrupted();
    if (ids.size() >= kPiece) feed(ids.size() / kPiece * kPiece);
    known_before = prompt.given_out();
  }
  if (ids.empty() && sequence.tokens() == 0) ids = ids_to_begin_with(run);
  feed(ids.size());
  progress.done();
  return {.tokens = sequence.tokens() - before, .seconds = seconds_since(start)};
}

// WrittenText ---------------------------------------------------------------------------------------------------------

WrittenText::WrittenText(const Tokenizer* tokenizer, const std::vector<std::string>& stops,
                         const GenerateOptions& options)
    : tokenizer_(tokenizer), stops_(stops), logprobs_(options.logprobs), alternatives_(options.top_logprobs > 0) {}

std::string WrittenText::add(const WrittenToken& token) {
  ids_.push_back(token.id);
  if (alternatives_) {
    const auto entry = [&](int64_t id, double logprob) {
      return Json{{"id", id}, {"token", bytes_of_id(tokenizer_, id)}, {"logprob", logprob}};
    };
    Json list = entry(token.id, token.logprob);
    list["top"] = Json::array();
    for (const TokenLogprob& one : token.top) list["top"].push_back(entry(one.id, one.logprob));
    logprob_list_.push_back(std::move(list));
  } else if (logprobs_) {
    logprob_list_.push_back(token.logprob);
  }
  if (!tokenizer_) return {};
  std::string decided = characters_.push(stops_.push(bytes_of_id(tokenizer_, token.id)));
  text_ += decided;
  return decided;
}

std::string WrittenText::finish() {
  std::string rest = characters_.push(stops_.finish()) + characters_.finish();
  text_ += rest;
  return rest;
}

std::string WrittenText::logprob_line(const WrittenToken& token) const {
  std::string line;
  const auto add = [&](int64_t id, double logprob) {
    char numbers[64];
    std::snprintf(numbers, sizeof numbers, "%lld\t%.6f\t", static_cast<long long>(id), logprob);
    line += (line.empty() ? "" : "\t") + std::string(numbers) + one_line(bytes_of_id(tokenizer_, id));
  };
  add(token.id, token.logprob);
  for (const TokenLogprob& one : token.top) add(one.id, one.logprob);
  return line + "\n";
}

Json WrittenText::json(std::string_view reason, int64_t prompt_tokens, double seconds) const {
  const auto count = static_cast<double>(ids_.size());
  Json result = {{"text", text_},
                 {"ids", ids_},
                 {"finish_reason", reason},
                 {"prompt_tokens", prompt_tokens},
                 {"tokens", ids_.size()},
                 {"seconds", seconds},
                 {"tokens_per_second", seconds > 0 ? count / seconds : 0}};
  if (logprobs_ || alternatives_) result["logprobs"] = logprob_list_;
  return result;
}

std::string_view finish_reason(Finish how, const WrittenText& text) {
  if (how == Finish::length) return "length";
  return how == Finish::stopped && !text.stopped() ? "interrupted" : "stop";
}

}  // namespace ssm::cli
