// What the ways to generate share: the settings of `ssm generate`, prompts read piece by piece, and written tokens on
// their way to text: bytes of tokens -> stop texts -> whole UTF-8 characters.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/json_line.h"
#include "data/text.h"
#include "engine/batch.h"
#include "engine/stop_text.h"
#include "tokenizers/tokenizer.h"
#include "tokenizers/utf8_stream.h"

namespace ssm::cli {

struct GenerateSettings {
  GenerateOptions options;
  std::string model, tokenizer, prompt, prompt_file, ids, state_in, state_out, ids_out, batch, prefix, suffix = "\n";
  std::vector<std::string> stops;
  int64_t samples = 1, parallel = Batch::kFewRows, undo = 1000;
  bool interactive = false, ignore_eos = false;
  bool has_prompt = false, has_ids = false;  // --prompt or --prompt-file; --ids
  bool json = false, quiet = false;
};

// One run of the command.
struct Generation {
  const GenerateSettings& settings;
  const Model& model;
  const Tokenizer* tokenizer;  // null: ids alone
  Threads& threads;
};

// Each returns the exit code.
int generate_samples(const Generation& run);
int generate_batch(const Generation& run);
int generate_interactive(const Generation& run);

// The ids of a text. `begins`: nothing was read before it, so a tokenizer that opens texts with a token of its own may
// do so. Throws Error without a tokenizer.
std::vector<int64_t> encode_prompt(const Tokenizer* tokenizer, std::string_view text, bool begins);
// The bytes of a written id; none for special tokens and for ids that the tokenizer does not have.
std::string bytes_of_id(const Tokenizer* tokenizer, int64_t id);
// For an empty prompt before which nothing was read: the token that texts begin with, or Error.
std::vector<int64_t> ids_to_begin_with(const Generation& run);

struct PromptReading {
  int64_t tokens = 0;
  double seconds = 0;
};
// Feeds the prompt of the settings, tokenised piece by piece, so that one of any length needs constant memory. Shows
// progress, throws Interrupted on Ctrl-C.
PromptReading read_prompt(const Generation& run, Batch& batch, Sequence& sequence);

// The text of a sequence while it is written.
class WrittenText {
 public:
  WrittenText(const Tokenizer* tokenizer, const std::vector<std::string>& stops, const GenerateOptions& options);

  std::string add(const WrittenToken& token);  // the characters that are now decided; all of the text is kept too
  std::string finish();                        // the rest of them
  bool stopped() const { return stops_.stopped(); }

  const std::string& text() const { return text_; }
  const std::vector<int64_t>& ids() const { return ids_; }
  // A line for one token: id, log probability, text; then those of the alternatives; separated by tabs.
  std::string logprob_line(const WrittenToken& token) const;
  // "text", "ids", "finish_reason", "prompt_tokens", "tokens", "seconds", "tokens_per_second", and "logprobs" if asked
  // for: numbers, or objects where there are alternatives.
  Json json(std::string_view finish_reason, int64_t prompt_tokens, double seconds) const;

 private:
  const Tokenizer* tokenizer_;
  StopText stops_;
  Utf8Stream characters_;
  bool logprobs_, alternatives_;
  std::string text_;
  std::vector<int64_t> ids_;
  Json logprob_list_ = Json::array();
};

// "length", "stop" or "interrupted".
std::string_view finish_reason(Finish how, const WrittenText& text);

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace ssm::cli
