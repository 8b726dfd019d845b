#include "tokenizers/sentencepiece.h"

#include <sentencepiece_processor.h>

#include "core/error.h"

namespace ssm {
namespace {

class SentencePieceFile : public Tokenizer {
 public:
  explicit SentencePieceFile(const Path& path) : where_(path.string()) {
    const std::string bytes = read_text(path);
    const auto status = processor_.LoadFromSerializedProto(bytes);
    require(status.ok(), where_, " is not a SentencePiece model: ", status.ToString());
  }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    require(status.ok(), where_, ": ", status.ToString());
    return {ids.begin(), ids.end()};
  }

  std::string bytes_of(int64_t id) const override {
    check(id);
    return processor_.IdToPiece(static_cast<int>(id));
  }
  int64_t vocab() const override { return processor_.GetPieceSize(); }
  std::string name() const override { return where_; }

 private:
  void check(int64_t id) const {
    require(id >= 0 && id < vocab(), "id ", id, " is not in the vocabulary of ", where_, ", whose ids end at ",
            vocab() - 1);
  }
  std::string where_;
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece(const Path& path) { return std::make_unique<SentencePieceFile>(path); }

}  // namespace ssm
