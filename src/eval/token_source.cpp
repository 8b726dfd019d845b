#include "eval/token_source.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace ssm {

size_t KnownTokens::next(std::span<int64_t> out) {
  const size_t count = stream_.next(out);
  given_ += static_cast<double>(count);
  return count;
}

TextTokens::TextTokens(std::vector<std::string> files, const Tokenizer& tokenizer)
    : files_(std::move(files)), encoder_(tokenizer) {
  for (const std::string& file : files_) {  // before the run, not in the middle of it
    const TextPieces probe(file);
    total_ += static_cast<double>(probe.total());
    total_known_ = total_known_ && probe.total() > 0;
  }
}

size_t TextTokens::next(std::span<int64_t> out) {
  size_t count = 0;
  while (count < out.size() && (taken_ < ids_.size() || refill())) {
    const size_t more = std::min(out.size() - count, ids_.size() - taken_);
    std::copy_n(ids_.begin() + static_cast<std::ptrdiff_t>(taken_), more, out.data() + count);
    taken_ += more;
    count += more;
  }
  return count;
}

std::optional<double> TextTokens::share() const {
  if (!total_known_) return std::nullopt;
  const double of_piece = ids_.empty() ? 1 : static_cast<double>(taken_) / static_cast<double>(ids_.size());
  return (before_ + piece_ * of_piece) / total_;
}

std::string TextTokens::origin() const {
  return files_[0] + (files_.size() > 1 ? text(" and ", files_.size() - 1, " more") : "");
}

bool TextTokens::refill() {
  ids_.clear();
  taken_ = 0;
  while (ids_.empty()) {
    if (!file_) {
      if (at_ == files_.size()) return false;
      file_ = std::make_unique<TextPieces>(files_[at_]);
    }
    const std::string_view piece = file_->next();
    before_ += std::exchange(piece_, static_cast<double>(piece.size()));
    if (piece.empty()) {
      require(file_->bytes() > 0, files_[at_], " is empty; expected text");
      file_.reset();
      ++at_;
    } else {
      ids_ = encoder_.encode(piece);
    }
  }
  return true;
}

std::vector<int64_t> bytes_of_ids(const TokenSource& source, const Tokenizer* tokenizer, const ModelConfig& config) {
  if (!tokenizer || (!source.tokenizer().empty() && source.tokenizer() != tokenizer->name())) return {};
  std::vector<int64_t> bytes(static_cast<size_t>(config.vocab_size));
  for (int64_t id = 0; id < std::min(tokenizer->vocab(), config.vocab_size); ++id)
    if (tokenizer->knows(id))
      bytes[static_cast<size_t>(id)] = static_cast<int64_t>(tokenizer->bytes_of(id).size());
  return bytes;
}

}  // namespace ssm
