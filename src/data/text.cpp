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

class Descriptor {
 public:
  explicit Descriptor(const Path& path) : path_(path), number_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    require(number_ >= 0, "cannot open ", path.string(), ": ", std::strerror(errno));
  }
  ~Descriptor() { close(number_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  // Appends to `text` until it has `size` bytes or the file ends; returns whether the file goes on.
  bool fill(std::string& text, size_t size) {
    while (text.size() < size) {
      const size_t had = text.size();
      text.resize(size);
      const ssize_t got = read(number_, text.data() + had, size - had);
      const int problem = errno;
      text.resize(had + static_cast<size_t>(std::max<ssize_t>(got, 0)));
      if (got < 0 && problem == EINTR) continue;
      require(got >= 0, "cannot read ", path_.string(), ": ", std::strerror(problem));
      if (got == 0) return false;
    }
    return true;
  }

 private:
  const Path& path_;
  int number_;
};

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
  DCHECK(reading.piece > 0);
  const int64_t total = total_size(files);
  int64_t done = 0;
  std::string text;
  for (const Path& path : files) {
    Descriptor file(path);
    const int64_t before = done;
    bool more = true;
    while (more) {
      more = file.fill(text, static_cast<size_t>(reading.piece));
      const size_t length = more ? cut_position(text) : text.size();
      if (length == 0) break;
      append(encoder.encode(std::string_view(text).substr(0, length)));
      text.erase(0, length);
      done += static_cast<int64_t>(length);
      if (reading.progress) reading.progress(done, total);
    }
    require(done > before, path.string(), " is empty; expected text");
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
