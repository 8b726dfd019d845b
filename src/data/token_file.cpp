// Reading and writing the token file format (data/README.md). Files are little-endian, as is every machine this
// builds for.
#include "data/token_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fstream>
#include <optional>

#include "core/error.h"

namespace ssm {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr char kMagic[8] = {'S', 'S', 'M', 'T', 'O', 'K', 'E', 'N'};
constexpr uint32_t kVersion = 1;
constexpr int64_t kMaxVocab = int64_t{1} << 32;  // ids are at most 32 bits wide
constexpr size_t kWriteBytes = 1 << 20;          // what a writer gathers before it asks the system

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t width;  // bytes an id
  uint64_t vocab;
  uint64_t count;
  char tokenizer[224];  // padded with zeros, the last byte always zero
};
static_assert(sizeof(Header) == 256);

int64_t width_of(int64_t vocab) { return vocab <= 65536 ? 2 : 4; }

void check_vocab(int64_t vocab, const std::string& where) {
  require(vocab >= 1 && vocab <= kMaxVocab, where, ": a vocabulary of ", vocab, " ids; expected 1 to ", kMaxVocab);
}

// Names go into messages and JSON, so they hold no control characters.
bool is_name(std::string_view name) {
  return std::none_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 32 || c == 127; });
}

// Appends `ids`, the first of which is at `position` of the text, to `out`; nothing if one of them is not an id.
void pack(std::span<const int64_t> ids, int64_t vocab, int64_t position, const std::string& where,
          std::vector<std::byte>& out) {
  for (size_t i = 0; i < ids.size(); ++i)
    require(ids[i] >= 0 && ids[i] < vocab, where, ": id ", ids[i], " at position ", position + static_cast<int64_t>(i),
            " is outside the vocabulary of ", vocab, "; use the tokenizer that made the ids");
  const auto width = static_cast<size_t>(width_of(vocab));
  const size_t start = out.size();
  out.resize(start + ids.size() * width);
  std::byte* to = out.data() + start;
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto id = static_cast<uint32_t>(ids[i]);
    std::memcpy(to + i * width, &id, width);  // little-endian: the low bytes come first
  }
}

// The tokenizer's name in the header, or nothing if the field is not as a writer leaves it.
std::optional<std::string> name_in(const Header& header) {
  const std::string_view field(header.tokenizer, sizeof header.tokenizer);
  const size_t length = field.find('\0');
  if (length == field.npos || field.find_first_not_of('\0', length) != field.npos) return {};
  const std::string_view name = field.substr(0, length);
  if (!is_name(name)) return {};
  return std::string(name);
}

}  // namespace

Tokens::Tokens(std::shared_ptr<const void> owner, const std::byte* ids, int64_t count, int64_t vocab,
               std::string tokenizer, std::string origin)
    : owner_(std::move(owner)),
      ids_(ids),
      count_(count),
      vocab_(vocab),
      tokenizer_(std::move(tokenizer)),
      origin_(std::move(origin)) {}

Tokens Tokens::open(const Path& path) {
  auto file = std::make_shared<const MappedFile>(path);
  const std::string name = path.string();
  const std::span<const std::byte> bytes = file->bytes();
  require(bytes.size() >= sizeof(Header), name, " is no token file: ", bytes.size(), " bytes, the header alone has ",
          sizeof(Header));
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  require(std::equal(std::begin(kMagic), std::end(kMagic), header.magic), name,
          " is no token file: it does not begin with SSMTOKEN");
  require(header.version == kVersion, name, " has version ", header.version, " of the token file format; expected ",
          kVersion, "; tokenise the text again");
  require(header.vocab >= 1 && header.vocab <= static_cast<uint64_t>(kMaxVocab), name, ": the header says ",
          header.vocab, " ids of vocabulary, expected 1 to ", kMaxVocab, "; the file is damaged");
  const auto vocab = static_cast<int64_t>(header.vocab);
  require(header.width == width_of(vocab), name, ": the header says ", header.width, " bytes an id, expected ",
          width_of(vocab), " for a vocabulary of ", vocab, "; the file is damaged");
  const uint64_t room = bytes.size() - sizeof(Header);
  require(room % header.width == 0 && header.count == room / header.width, name,
          " is truncated or damaged: the header says ", header.count, " ids of ", header.width, " bytes, the file has ",
          room, " bytes of ids");
  const std::optional<std::string> tokenizer = name_in(header);
  require(tokenizer.has_value(), name, ": the tokenizer's name in the header is damaged");
  const std::byte* ids = bytes.data() + sizeof(Header);
  return Tokens(std::move(file), ids, static_cast<int64_t>(header.count), vocab, *tokenizer, name);
}

Tokens Tokens::from_ids(std::span<const int64_t> ids, int64_t vocab, std::string tokenizer) {
  TokenBuffer buffer(vocab, std::move(tokenizer));
  buffer.append(ids);
  return buffer.take();
}

template <class Id>
void Tokens::read_as(int64_t begin, std::span<int64_t> out) const {
  const std::byte* from = ids_ + begin * static_cast<int64_t>(sizeof(Id));
  for (size_t i = 0; i < out.size(); ++i) {
    Id id;
    std::memcpy(&id, from + i * sizeof(Id), sizeof(Id));
    require(id < vocab_, origin_, ": id ", id, " at position ", begin + static_cast<int64_t>(i),
            " is outside the vocabulary of ", vocab_, "; the file is damaged, tokenise the text again");
    out[i] = id;
  }
}

void Tokens::read(int64_t begin, std::span<int64_t> out) const {
  DCHECK(begin >= 0 && static_cast<int64_t>(out.size()) <= count_ - begin);
  if (width_of(vocab_) == 2)
    read_as<uint16_t>(begin, out);
  else
    read_as<uint32_t>(begin, out);
}

int64_t Tokens::operator[](int64_t i) const {
  int64_t id;
  read(i, {&id, 1});
  return id;
}

bool is_token_file(const Path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return false;  // reading from a pipe would take its bytes away
  std::ifstream file(path, std::ios::binary);
  char magic[sizeof kMagic];
  return file.read(magic, sizeof magic) && std::equal(std::begin(kMagic), std::end(kMagic), magic);
}

TokenWriter::TokenWriter(const Path& path, int64_t vocab, std::string tokenizer)
    : file_(path), path_(path.string()), tokenizer_(std::move(tokenizer)), vocab_(vocab) {
  check_vocab(vocab, path_);
  require(tokenizer_.size() < sizeof Header::tokenizer && is_name(tokenizer_), path_, ": the tokenizer's name has ",
          tokenizer_.size(), " characters; expected at most ", sizeof Header::tokenizer - 1, ", all printable");
  const Header unfinished{};  // the count is known last, so the header is written last, over these zeros
  file_.write(&unfinished, sizeof unfinished);
}

void TokenWriter::append(std::span<const int64_t> ids) {
  while (!ids.empty()) {
    const auto piece = ids.first(std::min(ids.size(), kWriteBytes / 4));
    pack(piece, vocab_, count_, path_, buffer_);
    count_ += static_cast<int64_t>(piece.size());
    ids = ids.subspan(piece.size());
    if (buffer_.size() >= kWriteBytes) flush();
  }
}

void TokenWriter::flush() {
  file_.write(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void TokenWriter::commit() {
  flush();
  Header header{};
  std::copy(std::begin(kMagic), std::end(kMagic), header.magic);
  header.version = kVersion;
  header.width = static_cast<uint32_t>(width_of(vocab_));
  header.vocab = static_cast<uint64_t>(vocab_);
  header.count = static_cast<uint64_t>(count_);
  std::copy(tokenizer_.begin(), tokenizer_.end(), header.tokenizer);
  file_.write_at(0, &header, sizeof header);
  file_.commit();
}

TokenBuffer::TokenBuffer(int64_t vocab, std::string tokenizer, std::string origin)
    : tokenizer_(std::move(tokenizer)), origin_(std::move(origin)), vocab_(vocab) {
  check_vocab(vocab, origin_);
}

void TokenBuffer::append(std::span<const int64_t> ids) {
  pack(ids, vocab_, count_, origin_, ids_);
  count_ += static_cast<int64_t>(ids.size());
}

Tokens TokenBuffer::take() {
  auto ids = std::make_shared<const std::vector<std::byte>>(std::move(ids_));
  const std::byte* data = ids->data();
  Tokens tokens(std::move(ids), data, count_, vocab_, tokenizer_, origin_);
  ids_.clear();
  count_ = 0;
  return tokens;
}

}  // namespace ssm
