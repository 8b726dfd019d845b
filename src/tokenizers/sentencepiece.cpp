// libsentencepiece trusts its files: a damaged table of normalisations makes it read out of bounds, a score that is no
// number makes it abort. So the protobuf is walked first, and what the library would not check is checked here.
#include "tokenizers/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "tokenizers/tokenizer_config.h"
#include "tokenizers/utf8.h"

namespace ssm {
namespace {

constexpr size_t kMostBytes = size_t{64} << 20;          // of a file; the largest published ones have about 5 MB
constexpr size_t kLongestPiece = 4 << 10;                // bytes
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // ▁

// Fields of a protobuf message, one after the other.
class Fields {
 public:
  Fields(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  bool next() {
    if (bytes_.empty()) return false;
    const uint64_t key = varint();
    number = key >> 3;
    require(number > 0 && number < (1u << 29), where_, ": a field has no valid number; the file is damaged");
    data = {};
    switch (key & 7) {
      case 0: varint(); break;
      case 1: data = take(8); break;
      case 2: data = take(varint()); break;
      case 5: data = take(4); break;
      default: throw Error(where_, ": a field has no valid type; the file is truncated or damaged");
    }
    return true;
  }

  uint64_t number = 0;
  std::string_view data;  // empty for numbers of variable length, which nobody asks for

 private:
  std::string_view take(uint64_t count) {
    require(count <= bytes_.size(), where_, ": needs ", count, " bytes, found ", bytes_.size(),
            "; the file is truncated or damaged");
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw Error(where_, ": a number has no end; the file is damaged");
  }

  std::string_view bytes_;
  const std::string& where_;
};

// The table of normalisations: the size of a double-array trie, the trie, and the texts that its values point at, each
// ended by a zero. Every node that can be reached must keep inside the trie, every value inside the texts.
void check_normalisations(std::string_view table, const std::string& where) {
  if (table.empty()) return;
  const auto damaged = [&](bool fine) { require(fine, where, ": the table of normalisations is damaged"); };
  uint32_t trie_bytes = 0;
  damaged(table.size() > sizeof trie_bytes);
  std::memcpy(&trie_bytes, table.data(), sizeof trie_bytes);
  damaged(trie_bytes < table.size() - sizeof trie_bytes && trie_bytes % 4 == 0 && trie_bytes >= 1024);
  std::vector<uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), table.data() + sizeof trie_bytes, trie_bytes);
  const std::string_view texts = table.substr(sizeof trie_bytes + trie_bytes);
  damaged(texts.back() == '\0');

  std::vector<bool> seen(units.size());
  std::vector<size_t> open{0};
  seen[0] = true;
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    const uint32_t unit = units[node];
    const size_t base = node ^ static_cast<size_t>((unit >> 10) << ((unit & (1u << 9)) >> 6));
    damaged((base | 0xFF) < units.size());
    if (unit & (1u << 8)) damaged((units[base] & 0x7FFFFFFF) < texts.size());
    for (uint32_t label = 1; label < 256; ++label) {
      const size_t child = base ^ label;
      if ((units[child] & 0x800000FF) != label || seen[child]) continue;
      seen[child] = true;
      open.push_back(child);
    }
  }
}

// Numbers of the fields in sentencepiece_model.proto.
void check_model(std::string_view bytes, const std::string& where) {
  constexpr uint64_t kPieces = 1, kNormalizer = 3, kDenormalizer = 5, kPieceText = 1, kPieceScore = 2, kTable = 2;
  int64_t pieces = 0;
  for (Fields model(bytes, where); model.next();) {
    if (model.number == kPieces) {
      const std::string place = text(where, ": piece ", pieces++);
      for (Fields piece(model.data, place); piece.next();) {
        if (piece.number == kPieceText)
          require(piece.data.size() <= kLongestPiece, place, " has ", piece.data.size(), " bytes, at most ",
                  kLongestPiece, " are supported");
        if (piece.number == kPieceScore && piece.data.size() == sizeof(float)) {
          float score = 0;
          std::memcpy(&score, piece.data.data(), sizeof score);
          require(std::isfinite(score) && std::abs(score) < 1e9f, place, " has the score ", score,
                  ", expected a logarithm of a probability or a rank");
        }
      }
    } else if (model.number == kNormalizer || model.number == kDenormalizer) {
      for (Fields spec(model.data, where); spec.next();)
        if (spec.number == kTable) check_normalisations(spec.data, where);
    }
  }
  require(pieces > 0, where, " is not a SentencePiece model: it has no pieces");
}

class SentencePieceFile : public Tokenizer {
 public:
  explicit SentencePieceFile(const Path& path) : where_(path.string()), config_(read_tokenizer_config(path)) {
    const MappedFile file(path);
    require(file.bytes().size() <= kMostBytes, where_, " has ", file.bytes().size(), " bytes, at most ", kMostBytes,
            " are supported");
    const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    check_model(bytes, where_);
    checked([&] { return processor_.LoadFromSerializedProto({bytes.data(), bytes.size()}); });
  }

  std::vector<int64_t> encode(std::string_view text) const override {
    std::string storage;
    const std::string_view valid = well_formed(text, storage);
    std::vector<int> ids;
    checked([&] { return processor_.Encode({valid.data(), valid.size()}, &ids); });
    return {ids.begin(), ids.end()};
  }

  std::vector<int64_t> encode_with_specials(std::string_view text) const override {
    std::vector<int64_t> ids = encode(text);
    if (config_.add_bos_token && processor_.bos_id() >= 0) ids.insert(ids.begin(), processor_.bos_id());
    if (config_.add_eos_token && processor_.eos_id() >= 0) ids.push_back(processor_.eos_id());
    return ids;
  }

  std::string bytes_of(int64_t id) const override {
    const int piece = checked_id(id);
    std::string token = processor_.IdToPiece(piece);
    if (processor_.IsControl(piece)) return "";
    if (processor_.IsUnknown(piece)) return " \xE2\x81\x87 ";  // what the library decodes it to
    if (processor_.IsByte(piece))                              // <0x0A>
      return std::string(1, static_cast<char>(std::stoi(token.substr(3, 2), nullptr, 16)));
    for (size_t at; (at = token.find(kSpaceMark)) != token.npos;) token.replace(at, kSpaceMark.size(), " ");
    return token;
  }

  std::string decode(std::span<const int64_t> ids) const override {
    std::vector<int> pieces;
    for (const int64_t id : ids) pieces.push_back(checked_id(id));
    std::string text;
    checked([&] { return processor_.Decode(pieces, &text); });
    return text;
  }

  bool is_special(int64_t id) const override {
    const int piece = checked_id(id);
    return processor_.IsControl(piece) || processor_.IsUnknown(piece);
  }
  int64_t vocab() const override { return processor_.GetPieceSize(); }
  std::string name() const override { return where_; }
  std::optional<int64_t> end_of_text() const override {
    if (!config_.eos_token.empty())
      if (const int id = processor_.PieceToId(config_.eos_token); !processor_.IsUnknown(id)) return id;
    return processor_.eos_id() >= 0 ? std::optional<int64_t>(processor_.eos_id()) : std::nullopt;
  }

 private:
  template <class Call>
  void checked(const Call& call) const {
    std::string problem;
    try {
      const auto status = call();
      if (status.ok()) return;
      problem = status.ToString();
    } catch (const std::exception& thrown) {
      problem = thrown.what();
    }
    for (char& c : problem)
      if (c < 0x20 || c > 0x7E) c = ' ';
    throw Error(where_, ": libsentencepiece reports: ", problem);
  }

  int checked_id(int64_t id) const {
    require(id >= 0 && id < vocab(), "id ", id, " is not in the vocabulary of ", where_, ", whose ids end at ",
            vocab() - 1);
    return static_cast<int>(id);
  }

  std::string where_;
  TokenizerConfig config_;
  sentencepiece::SentencePieceProcessor processor_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece(const Path& path) { return std::make_unique<SentencePieceFile>(path); }

}  // namespace ssm
