// `ssm tokenize`: text to ids and back.
#include "cli/command.h"
#include "cli/json_line.h"
#include "cli/model_flags.h"
#include "cli/terminal.h"
#include "data/text.h"
#include "formats/npy.h"
#include "tokenizers/tokenizer.h"
#include "tokenizers/utf8_stream.h"

namespace ssm::cli {
namespace {

class Tokenize : public Command {
 public:
  std::string name() const override { return "tokenize"; }
  std::string summary() const override { return "text to token ids and back"; }
  std::string example() const override { return "ssm tokenize --tokenizer models/mamba-130m --text 'Hello world'"; }

  Fields fields() override {
    return {{"tokenizer", &tokenizer_, "bytes, dna, a tokenizer.json, a SentencePiece .model, or a directory with one"},
            {"text", &text_, "text to tokenize"},
            {"file", &file_, "file to tokenize; - reads standard input"},
            {"no_specials", &no_specials_, "leave out what the tokenizer puts around a text (begin-of-text, ...)"},
            {"out", &out_, "i64 (t) in F.npy; under another name a token file for --data; else ids go to stdout"},
            {"decode", &decode_, "ids, integers (t) in a .npy file, back to text on stdout"}};
  }

  int run(const Invocation& invocation) override {
    const int sources = invocation.has("text") + invocation.has("file") + invocation.has("decode");
    require_usage(sources == 1, sources == 0 ? "nothing to do" : "more than one source",
                  "; give one of --text TEXT, --file F and --decode F.npy");
    require_usage(decode_.empty() || out_.empty(), "--out with --decode: the text goes to standard output");
    if (!out_.empty()) require_can_write(out_);
    const auto tokenizer = open_tokenizer(tokenizer_);
    if (!decode_.empty()) return decode(*tokenizer, invocation.common.json);
    const bool token_file = !out_.empty() && Path(out_).extension() != ".npy";
    return token_file ? to_token_file(*tokenizer, invocation) : to_ids(*tokenizer, invocation);
  }

 private:
  int decode(const Tokenizer& tokenizer, bool json) const {
    const Tensor ids = read_ids(decode_, tokenizer.vocab());
    require(ids.rank() == 1 || ids.size(0) == 1, decode_, " has shape ", ids.shape(), ", expected one sequence, (t)");
    const std::string bytes = tokenizer.decode(ids.span<int64_t>());
    Utf8Stream characters;
    print(json ? json_line({{"text", characters.push(bytes) + characters.finish()}, {"tokens", ids.count()}}) : bytes);
    return 0;
  }

  int to_ids(const Tokenizer& tokenizer, const Invocation& invocation) const {
    const std::string contents = invocation.has("text") ? text_ : read_text(file_);
    require(!contents.empty(), invocation.has("text") ? "--text" : file_, " is empty; there is nothing to tokenize");
    const std::vector<int64_t> ids = encode(tokenizer, contents);
    if (!out_.empty()) write_npy(out_, Tensor::of(ids));
    if (invocation.common.json) {
      Json result = {{"tokens", ids.size()}};
      if (out_.empty()) {
        result["ids"] = ids;
        for (const int64_t id : ids) result["pieces"].push_back(tokenizer.bytes_of(id));
      }
      print(json_line(result));
    } else if (out_.empty() && stdout_is_terminal()) {
      print(table(tokenizer, ids));
    } else if (out_.empty()) {
      std::string line;
      for (const int64_t id : ids) line += (line.empty() ? "" : " ") + std::to_string(id);
      print(line + "\n");
    } else {
      note(text(ids.size(), " tokens in ", out_), invocation.common.quiet);
    }
    return 0;
  }

  std::vector<int64_t> encode(const Tokenizer& tokenizer, std::string_view contents) const {
    return no_specials_ ? tokenizer.encode(contents) : tokenizer.encode_with_specials(contents);
  }

  // For people: an id a line with what it stands for, in quotes because many pieces begin with a space.
  static std::string table(const Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
    std::string lines;
    for (const int64_t id : ids) {
      const std::string number = std::to_string(id);
      lines += std::string(number.size() < 8 ? 8 - number.size() : 0, ' ') + number + "  \"" +
               one_line(tokenizer.bytes_of(id)) + "\"" + (tokenizer.is_special(id) ? "  special" : "") + "\n";
    }
    return lines;
  }

  // Training data: the ids of the text alone. Files of any size, at constant memory.
  int to_token_file(const Tokenizer& tokenizer, const Invocation& invocation) const {
    const TextEncoder encoder{.encode = [&](std::string_view piece) { return tokenizer.encode(piece); },
                              .vocab = tokenizer.vocab(),
                              .name = tokenizer.name()};
    int64_t tokens = 0;
    if (invocation.has("text") || file_ == "-") {
      const std::vector<int64_t> ids = tokenizer.encode(invocation.has("text") ? text_ : read_text(file_));
      TokenWriter writer(out_, tokenizer.vocab(), tokenizer.name());
      writer.append(ids);
      writer.commit();
      tokens = writer.count();
    } else {
      Progress progress(invocation.common.quiet);
      tokens = tokenize_files(
          {file_}, encoder, out_, {.progress = [&](int64_t bytes, int64_t total) {
            stop_if_interrupted();
            progress.show(text(byte_count(static_cast<double>(bytes)), " of ", byte_count(static_cast<double>(total))));
          }});
      progress.clear();
    }
    if (invocation.common.json) print(json_line({{"tokens", tokens}}));
    note(text(tokens, " tokens in ", out_), invocation.common.quiet || invocation.common.json);
    return 0;
  }

  std::string tokenizer_ = "bytes", text_, file_, out_, decode_;
  bool no_specials_ = false;
};

}  // namespace

std::unique_ptr<Command> make_tokenize() { return std::make_unique<Tokenize>(); }

}  // namespace ssm::cli
