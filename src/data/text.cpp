// Reads files piece by piece and hands each piece, cut at a line end, to the encoder.
#include "data/text.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace ssm {
namespace {

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

int64_t total_size(const std::vector<Path>& files) {
  int64_t total = 0;
  for (const Path& file : files) {
    std::error_code problem;
    if (!std::filesystem::is_regular_file(file, problem)) return 0;
    total += static_cast<int64_t>(std::filesystem::file_size(file, problem));
    if (problem) return 0;
  }
  return total;
}

void encode_files(const std::vector<Path>& files, const TextEncoder& encoder, const TextReading& reading,
                  const std::function<void(std::span<const int64_t>)>& append) {
  const int64_t total = total_size(files);
  int64_t done = 0;
  for (const Path& path : files) {
    TextPieces text(path, reading.piece);
    for (std::string_view piece = text.next(); !piece.empty(); piece = text.next()) {
      append(encoder.encode(piece));
      if (reading.progress) reading.progress(done + text.bytes(), total);
    }
    require(text.bytes() > 0, path.string(), " is empty; expected text");
    done += text.bytes();
  }
}

}  // namespace

size_t cut_position(std::string_view text) {
  for (size_t end = text.size(); end-- > 2;)
    if (text[end - 1] == '\n' && !is_space(text[end]) && !is_space(text[end - 2])) return end;
  if (const size_t line_end = text.rfind('\n'); line_end != text.npos) return line_end + 1;
  // The last character may be incomplete: it stays for the next piece. A run of four or more continuation bytes is
  // not UTF-8 and may be cut anywhere.
  for (size_t back = 1; back <= 4 && back < text.size(); ++back)
    if (!continues_character(text[text.size() - back])) return text.size() - back;
  return text.size();
}

TextPieces::TextPieces(const Path& path, int64_t piece) : piece_(static_cast<size_t>(piece)) {
  DCHECK(piece > 0);
  const bool is_input = path == "-";
  name_ = is_input ? "standard input" : path.string();
  descriptor_ = is_input ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(descriptor_ >= 0, "cannot open ", name_, ": ", std::strerror(errno));
  if (!is_input) total_ = total_size({path});
}

TextPieces::~TextPieces() { close(descriptor_); }

std::string_view TextPieces::next() {
  text_.erase(0, given_);
  while (more_ && text_.size() < piece_) {
    const size_t had = text_.size();
    text_.resize(piece_);
    const ssize_t got = read(descriptor_, text_.data() + had, piece_ - had);
    const int problem = errno;
    text_.resize(had + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got < 0 && problem == EINTR) continue;
    require(got >= 0, "cannot read ", name_, ": ", std::strerror(problem));
    more_ = got > 0;
  }
  given_ = more_ ? cut_position(text_) : text_.size();
  bytes_ += static_cast<int64_t>(given_);
  return std::string_view(text_).substr(0, given_);
}

int64_t tokenize_files(const std::vector<Path>& files, const TextEncoder& encoder, const Path& output,
                       const TextReading& reading) {
  require(!files.empty(), "no text files given");
  TokenWriter writer(output, encoder.vocab, encoder.name);
  encode_files(files, encoder, reading, [&](auto ids) { writer.append(ids); });
  writer.commit();
  return writer.count();
}

Tokens read_tokens(const std::vector<Path>& files, const TextEncoder& encoder, const TextReading& reading) {
  require(!files.empty(), "no text files given");
  const std::string others = files.size() > 1 ? text(" and ", files.size() - 1, " more") : "";
  TokenBuffer buffer(encoder.vocab, encoder.name, files[0].string() + others);
  encode_files(files, encoder, reading, [&](auto ids) { buffer.append(ids); });
  return buffer.take();
}

}  // namespace ssm
