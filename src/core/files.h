// Files: read-only mappings, and writes that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace ssm {

using Path = std::filesystem::path;

// A read-only, memory-mapped file. Errors name the file.
class MappedFile {
 public:
  explicit MappedFile(const Path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const Path& path() const { return path_; }

 private:
  Path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

std::string read_text(const Path& path);  // the whole file; "-" reads standard input

// A file being written under a temporary name beside `path`. commit() flushes it to the disk and renames it into
// place; without commit the destructor removes it. Every failure (full disk, no permission) throws Error.
class FileWriter {
 public:
  explicit FileWriter(Path path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void write_at(int64_t offset, const void* data, size_t bytes);  // over bytes written before: a header known last
  void commit();

 private:
  Path path_, temporary_;
  int descriptor_ = -1;
};

void write_file(const Path& path, std::string_view contents);  // FileWriter in one call

// A directory filled by `fill` under a temporary name and renamed into place whole. Nothing is ever replaced: a path
// that exists and is not an empty directory is an Error.
void write_directory(const Path& path, const std::function<void(const Path& temporary)>& fill);

}  // namespace ssm
