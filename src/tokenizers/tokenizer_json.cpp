// The stages of a tokenizer file, put together: added tokens in the raw text, normalizer, added tokens in the
// normalised text, pre-tokenizer, model, post-processor; and back through the decoder.
#include "tokenizers/tokenizer_json.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

#include "core/error.h"
#include "tokenizers/added_tokens.h"
#include "tokenizers/decoder.h"
#include "tokenizers/json_fields.h"
#include "tokenizers/normalizer.h"
#include "tokenizers/post_processor.h"
#include "tokenizers/pre_tokenizer.h"
#include "tokenizers/tokenizer_config.h"
#include "tokenizers/utf8.h"
#include "tokenizers/word_model.h"

namespace ssm {
namespace {

constexpr size_t kLongestAdded = 4 << 10;  // bytes of an added token: looking for one takes that many steps a byte
constexpr auto kEndNames = {"<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>"};

class TokenizerFile : public Tokenizer {
 public:
  TokenizerFile(const Json& json, const Path& path) : path_(path), where_(path.string()) {
    const Component file(json, where_);
    const auto part = [&](const char* key) -> const Json& {
      static const Json null;
      const Json* found = file.find(key);
      return found ? *found : null;
    };
    const std::string version = file.text("version", "1.0");
    require(version == "1.0", where_, " has version ", version, ", expected 1.0");
    normalizer_ = make_normalizer(part("normalizer"), where_ + ": normalizer");
    pre_tokenizer_ = make_pre_tokenizer(part("pre_tokenizer"), where_ + ": pre_tokenizer");
    model_ = make_word_model(file.object("model"), where_ + ": model");
    decoder_ = make_decoder(part("decoder"), where_ + ": decoder");
    template_ = read_template(part("post_processor"), where_ + ": post_processor");
    vocab_ = model_->vocabulary().end();
    if (file.find("added_tokens")) read_added_tokens(file.array("added_tokens"));
    for (const TemplatePart& piece : template_)
      for (const int64_t id : piece.ids)
        require(string_of(id) != nullptr, where_, ": post_processor: the id ", id, " is not in the vocabulary");
    end_of_text_ = find_end_of_text();
  }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int64_t> ids;
    encode_to(text, ids);
    return ids;
  }

  std::vector<int64_t> encode_with_specials(std::string_view text) const override {
    std::vector<int64_t> ids;
    for (const TemplatePart& piece : template_) {
      if (piece.text)
        encode_to(text, ids);
      else
        ids.insert(ids.end(), piece.ids.begin(), piece.ids.end());
    }
    return ids;
  }

  bool knows(int64_t id) const override { return string_of(id) != nullptr; }

  std::string bytes_of(int64_t id) const override {
    const std::string& token = string_or_throw(id);
    return decoder_ ? decoder_->bytes_of(token) : token;
  }

  std::string decode(std::span<const int64_t> ids) const override {
    std::vector<std::string> tokens;
    tokens.reserve(ids.size());
    for (const int64_t id : ids) tokens.push_back(string_or_throw(id));
    if (decoder_ && !tokens.empty()) tokens = decoder_->decode(std::move(tokens));
    std::string text;
    for (const std::string& token : tokens) {
      if (!decoder_ && !text.empty()) text += ' ';
      text += token;
    }
    return text;
  }

  bool is_special(int64_t id) const override {
    const auto found = added_.find(id);
    return found != added_.end() && found->second.special;
  }

  int64_t vocab() const override { return vocab_; }
  std::string name() const override { return where_; }
  std::optional<int64_t> end_of_text() const override { return end_of_text_; }

 private:
  struct Added {
    std::string content;  // as it is decoded: normalised if it is found in normalised text
    bool special;
  };

  // An added token's id is that of its content, or the next free one; the file's own is only what it was when the file
  // was written. The last token with an id counts.
  void read_added_tokens(const Json& list) {
    const Vocabulary& words = model_->vocabulary();
    std::unordered_map<std::string, int64_t> ids;
    std::map<int64_t, AddedToken> tokens;
    auto next = static_cast<int64_t>(words.size());
    for (size_t i = 0; i < list.size(); ++i) {
      const Component part(list[i], ssm::text(where_, ": added_tokens[", i, "]"));
      AddedToken token{.id = 0,
                       .content = part.text("content"),
                       .single_word = part.flag("single_word"),
                       .lstrip = part.flag("lstrip"),
                       .rstrip = part.flag("rstrip"),
                       .normalized = part.flag("normalized"),
                       .special = part.flag("special")};
      part.count("id");  // must be there and a number
      require(token.content.size() <= kLongestAdded, part.where(), " has ", token.content.size(), " bytes, at most ",
              kLongestAdded, " are supported");
      if (token.content.empty()) continue;
      if (const auto known = ids.find(token.content); known != ids.end())
        token.id = known->second;
      else if (const auto word = words.id_of(token.content))
        token.id = *word;
      else
        token.id = next++;
      ids[token.content] = token.id;
      tokens.insert_or_assign(token.id, std::move(token));
    }
    for (const auto& [id, token] : tokens) {
      std::string pattern = token.content;
      if (token.normalized && normalizer_) {
        Normalizer::Text text{pattern, true};
        normalizer_->apply(text);
        pattern = std::move(text.text);
      }
      added_.emplace(id, Added{pattern, token.special});
      (token.normalized ? in_normalised_ : in_raw_).add(token, pattern);
      vocab_ = std::max(vocab_, id + 1);
    }
    in_raw_.build();
    in_normalised_.build();
  }

  std::optional<int64_t> id_of(const std::string& content) const {
    for (const auto& [id, token] : added_)
      if (token.content == content) return id;
    return model_->vocabulary().id_of(content);
  }

  std::optional<int64_t> find_end_of_text() const {
    const std::string named = read_tokenizer_config(path_).eos_token;
    if (const auto id = named.empty() ? std::nullopt : id_of(named)) return id;
    for (const char* name : kEndNames)
      for (const auto& [id, token] : added_)
        if (token.special && token.content == name) return id;
    return std::nullopt;
  }

  const std::string* string_of(int64_t id) const {
    const auto found = added_.find(id);
    return found != added_.end() ? &found->second.content : model_->vocabulary().string_of(id);
  }

  const std::string& string_or_throw(int64_t id) const {
    const std::string* token = string_of(id);
    require(token != nullptr, "id ", id, " is not in the vocabulary of ", where_, ", whose ids end at ", vocab_ - 1);
    return *token;
  }

  // Scratch memory is lent for one call, so that calls from several threads do not share it.
  class Lease {
   public:
    explicit Lease(const TokenizerFile& file) : file_(file) {
      const std::lock_guard lock(file.mutex_);
      if (file.idle_.empty()) {
        scratch_ = file.model_->make_scratch();
      } else {
        scratch_ = std::move(file.idle_.back());
        file.idle_.pop_back();
      }
    }
    ~Lease() {
      const std::lock_guard lock(file_.mutex_);
      file_.idle_.push_back(std::move(scratch_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    WordModel::Scratch& operator*() const { return *scratch_; }

   private:
    const TokenizerFile& file_;
    std::unique_ptr<WordModel::Scratch> scratch_;
  };

  void encode_to(std::string_view raw, std::vector<int64_t>& ids) const {
    std::string storage;
    const Lease scratch(*this);
    const auto add = [&](int64_t id) { ids.push_back(id); };
    const auto word = [&](Piece piece) { model_->encode(piece.text, *scratch, ids); };
    const auto pre_tokenized = [&](Piece piece) {
      if (pre_tokenizer_)
        pre_tokenizer_->split(piece, word);
      else
        word(piece);
    };
    const auto normalised = [&](Piece piece) {
      if (!normalizer_) return in_normalised_.split(piece, pre_tokenized, add);
      Normalizer::Text text{std::string(piece.text), piece.at_start};
      normalizer_->apply(text);
      in_normalised_.split({text.text, text.at_start}, pre_tokenized, add);
    };
    in_raw_.split({well_formed(raw, storage), true}, normalised, add);
  }

  Path path_;
  std::string where_;
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::unique_ptr<WordModel> model_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<TemplatePart> template_;
  AddedTokens in_raw_, in_normalised_;
  std::unordered_map<int64_t, Added> added_;
  int64_t vocab_ = 0;
  std::optional<int64_t> end_of_text_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<WordModel::Scratch>> idle_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer_json(const Path& path) {
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  return std::make_unique<TokenizerFile>(parse_tokenizer_json(text, path.string(), kDeepestTokenizerJson), path);
}

}  // namespace ssm
