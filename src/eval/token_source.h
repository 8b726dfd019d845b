// Where the tokens to score come from: ids at hand, or text files tokenised a piece at a time, so that text of any
// length needs constant memory. A TokenStream (perplexity.h) draws from one.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/text.h"
#include "eval/perplexity.h"
#include "tokenizers/tokenizer.h"

namespace ssm {

class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual size_t next(std::span<int64_t> out) = 0;  // as TokenStream::next
  virtual std::optional<double> share() const = 0;  // of all, how much has come; none: nobody knows
  virtual std::string origin() const = 0;
  virtual std::string tokenizer() const = 0;  // the name of the one that made the ids; "": not known
};

class KnownTokens final : public TokenSource {
 public:
  explicit KnownTokens(Tokens tokens) : tokens_(std::move(tokens)), stream_(stream_of(tokens_)) {}
  size_t next(std::span<int64_t> out) override;
  std::optional<double> share() const override { return given_ / static_cast<double>(tokens_.count()); }
  std::string origin() const override { return tokens_.origin(); }
  std::string tokenizer() const override { return tokens_.tokenizer(); }

 private:
  Tokens tokens_;
  TokenStream stream_;
  double given_ = 0;
};

// Text files one after the other, as one text. The tokenizer must outlive this.
class TextTokens final : public TokenSource {
 public:
  TextTokens(std::vector<std::string> files, const Tokenizer& tokenizer);
  size_t next(std::span<int64_t> out) override;
  std::optional<double> share() const override;
  std::string origin() const override;
  std::string tokenizer() const override { return encoder_.name(); }

 private:
  bool refill();  // the ids of the next piece; false at the end

  std::vector<std::string> files_;
  const Tokenizer& encoder_;
  std::unique_ptr<TextPieces> file_;
  size_t at_ = 0;  // of files_
  std::vector<int64_t> ids_;
  size_t taken_ = 0;
  double before_ = 0, piece_ = 0, total_ = 0;  // bytes
  bool total_known_ = true;
};

// Bytes that each id of the vocabulary stands for, as perplexity() takes them: empty unless `tokenizer` made the ids.
// Ids past the tokenizer's stand for none.
std::vector<int64_t> bytes_of_ids(const TokenSource& source, const Tokenizer* tokenizer, const ModelConfig& config);

}  // namespace ssm
